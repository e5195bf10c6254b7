"""Connections the kernel tracks: forgetting those that lead to a backend that left.

TCP ends by itself; UDP has no end, so a client that keeps sending keeps its entry, and its way to the old backend.
Numbers are from linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
"""

import errno
import ipaddress
import os
import socket
import struct

from hivemesh.kernel.sockets import close_netlink, open_netlink
from hivemesh.model.addr import Address
from hivemesh.wire.netlink import ACK, DONE, DUMP, ERROR, NESTED, attribute, attributes, error_of, pack, replies

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102  # subsystem 1
_SO_RCVBUFFORCE, _BUFFER = 33, 4 << 20
_TIMEOUT = 10.0  # seconds
_ORIGINAL, _REPLY, _ZONE, _ID = 1, 2, 18, 12
_IP, _PROTOCOL = 1, 2
_BATCH = 200


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _head(family: int) -> bytes:
    return struct.pack(">BBH", family, 0, 0)


def _reply_source(attrs: dict[int, bytes]) -> tuple[int, Address | None]:
    """Protocol number and source address of the reply direction: the backend that answers."""
    reply = attributes(attrs.get(_REPLY, b""))
    addresses = attributes(reply.get(_IP, b""))
    packed = addresses.get(1, addresses.get(3, b""))
    protocol = attributes(reply.get(_PROTOCOL, b"")).get(1, b"\0")[0]
    return protocol, ipaddress.ip_address(packed) if packed else None


def forget_udp(namespace: str, backend: Address) -> int:
    """Delete the UDP entries of `namespace` whose replies come from `backend`; returns how many.

    Raises `FileNotFoundError` when there is no such namespace.
    """
    sock = open_netlink(namespace, _NETLINK_NETFILTER)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.settimeout(_TIMEOUT)
        doomed = _find(sock, backend)
        for start in range(0, len(doomed), _BATCH):
            _delete(sock, doomed[start : start + _BATCH])
        return len(doomed)
    finally:
        close_netlink(sock)


def _find(sock: socket.socket, backend: Address) -> list[bytes]:
    """The deletions to ask for."""
    family = _family(backend)
    sock.send(pack(_GET, DUMP, 1, _head(family)))
    doomed: list[bytes] = []
    while True:
        for reply in replies(sock.recv(1 << 20)):
            if reply.kind == DONE:
                return doomed
            if reply.kind == ERROR:
                code, words = error_of(reply)
                raise OSError(code, words or os.strerror(code))
            attrs = attributes(reply.body, 4)
            if _reply_source(attrs) == (socket.IPPROTO_UDP, backend):
                # the id makes sure that it is this entry and no later one between the same ends
                parts = [attribute(_ORIGINAL | NESTED, attrs[_ORIGINAL])]
                parts += [attribute(kind, attrs[kind]) for kind in (_ID, _ZONE) if kind in attrs]
                doomed.append(_head(family) + b"".join(parts))


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
