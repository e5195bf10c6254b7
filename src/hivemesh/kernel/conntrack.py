"""Connections the kernel tracks: forgetting those that lead to a backend that left.

UDP has no end of a connection: a client that keeps sending keeps its entry, and its way to the old backend; without the
entry its next packet goes to another. A TCP connection to a backend that is gone for good would be silence until the
client gives up; without the entry its next packet reaches another backend too, which does not know it and resets it.

Numbers are from linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

from hivemesh.kernel.sockets import close_netlink, dumped, open_netlink
from hivemesh.model.addr import Address, Prefix
from hivemesh.wire.netlink import ACK, ERROR, NESTED, attribute, attributes, error_of, nested, pack, replies, u32

_NETLINK_NETFILTER = 12
_GET, _DELETE, _STATS = 0x101, 0x102, 0x105  # subsystem 1
_SO_RCVBUFFORCE, _BUFFER = 33, 4 << 20
_TIMEOUT = 10.0  # seconds
_ORIGINAL, _REPLY, _ZONE, _ID, _FILTER = 1, 2, 18, 12, 25
_IP, _PROTOCOL, _V4_SOURCE = 1, 2, 1
_REPLY_FLAGS, _BY_SOURCE = 2, 1
_STATS_ENTRIES = 1
_BATCH = 200
_FEW = 8
"""Up to so many addresses the kernel looks for each by itself, some ten milliseconds with 100,000 entries;
to read them all takes us two seconds."""


def forget(namespace: str, *, udp: Collection[Address] = (), every: Collection[Address] = ()) -> int:
    """Delete the entries of `namespace` whose replies come from an address in `every`, or in `udp` and by UDP.

    Returns how many. Where nothing is tracked it costs one question. Raises `FileNotFoundError` when there is no such
    namespace, `OSError` when the kernel refuses.
    """
    of_udp, of_every = set(udp), set(every)
    sources = of_udp | of_every
    return _forget(
        namespace,
        {_from(source) for source in sources} if len(sources) <= _FEW else {_all(source.version) for source in sources},
        lambda entry: entry.source in of_every or (entry.source in of_udp and entry.protocol == socket.IPPROTO_UDP),
    )


def forget_strangers(
    namespace: str, within: Collection[Prefix], *, known: Collection[Address], backends: Collection[Address]
) -> int:
    """Delete the entries of `namespace` whose replies come from `within`, but from no address in `known`; and by UDP,
    where somebody translated the destination, from none in `backends`. Returns and raises what `forget` does."""

    def is_strange(entry: _Entry) -> bool:
        if entry.source is None or not any(entry.source in prefix for prefix in within):
            return False
        translated = entry.protocol == socket.IPPROTO_UDP and entry.destination != entry.source
        return entry.source not in known or (translated and entry.source not in backends)

    return _forget(namespace, {_all(prefix.version) for prefix in within}, is_strange)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Protocol number, where the client sent it, and where the replies come from."""

    protocol: int
    destination: Address | None
    source: Address | None


def _forget(namespace: str, requests: Collection[bytes], is_doomed: Callable[[_Entry], bool]) -> int:
    sock = open_netlink(namespace, _NETLINK_NETFILTER)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.settimeout(_TIMEOUT)
        if not _tracked(sock):
            return 0
        count = 0
        for request in requests:
            doomed = _find(sock, request, is_doomed)
            for start in range(0, len(doomed), _BATCH):
                _delete(sock, doomed[start : start + _BATCH])
            count += len(doomed)
        return count
    finally:
        close_netlink(sock)


def _head(family: int) -> bytes:
    return struct.pack(">BBH", family, 0, 0)


def _all(version: int) -> bytes:
    """To list the entries of a family."""
    return _head(socket.AF_INET if version == 4 else socket.AF_INET6)


def _from(source: Address) -> bytes:
    """To list those whose replies come from there. Linux before 5.8 knows no filter, and lists the whole family; of
    IPv6 that is asked for, since the filter lists all others there (`ipv6_addr_cmp` in nf_conntrack_netlink.c)."""
    if source.version == 6:
        return _all(6)
    of_source = nested(_REPLY, nested(_IP, attribute(_V4_SOURCE, source.packed)))
    return _all(4) + of_source + nested(_FILTER, u32(_REPLY_FLAGS, _BY_SOURCE))


def _tracked(sock: socket.socket) -> int:
    """How many entries the namespace has; reading them all walks a table that all namespaces share."""
    sock.send(pack(_STATS, 0, 1, _head(socket.AF_UNSPEC)))
    for reply in replies(sock.recv(1 << 16)):
        if reply.kind == ERROR:
            code, words = error_of(reply)
            raise OSError(code, words or os.strerror(code))
        return int.from_bytes(attributes(reply.body, 4).get(_STATS_ENTRIES, b"\1"), "big")
    raise OSError(errno.EPROTO, "conntrack did not tell how many connections it tracks")


def _entry(attrs: dict[int, bytes]) -> _Entry:
    original, reply = attributes(attrs.get(_ORIGINAL, b"")), attributes(attrs.get(_REPLY, b""))
    protocol = attributes(reply.get(_PROTOCOL, b"")).get(1, b"\0")[0]
    return _Entry(protocol, _address(original, 2, 4), _address(reply, 1, 3))


def _address(tuple_: dict[int, bytes], of_v4: int, of_v6: int) -> Address | None:
    addresses = attributes(tuple_.get(_IP, b""))
    packed = addresses.get(of_v4, addresses.get(of_v6, b""))
    return ipaddress.ip_address(packed) if packed else None


def _find(sock: socket.socket, request: bytes, is_doomed: Callable[[_Entry], bool]) -> list[bytes]:
    """The deletions to ask for."""
    doomed: list[bytes] = []
    for body in dumped(sock, _GET, request):
        attrs = attributes(body, 4)
        if is_doomed(_entry(attrs)):
            # the id makes sure that it is this entry and no later one between the same ends
            parts = [attribute(_ORIGINAL | NESTED, attrs[_ORIGINAL])]
            parts += [attribute(kind, attrs[kind]) for kind in (_ID, _ZONE) if kind in attrs]
            doomed.append(body[:4] + b"".join(parts))
    return doomed


def _delete(sock: socket.socket, doomed: list[bytes]) -> None:
    last = len(doomed)
    sock.send(b"".join(pack(_DELETE, ACK if n == last else 0, n, body) for n, body in enumerate(doomed, 1)))
    while True:
        for reply in replies(sock.recv(1 << 20)):
            code, words = error_of(reply)
            if code not in (0, errno.ENOENT):  # ENOENT: ended meanwhile
                raise OSError(code, words or os.strerror(code))
            if reply.sequence == last:
                return
