"""Connections of a namespace's own sockets: ending those that lead to somebody who is gone.

A socket that was led to its backend as it connected speaks with that address itself. When the backend is gone for good
nobody answers, and its owner would wait for a quarter of an hour; ended, it hears at once (ECONNABORTED), after all
that had arrived. Who was told goodbye (CLOSE_WAIT) needs no ending.

Numbers are from linux/inet_diag.h and linux/sock_diag.h.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Collection
from pathlib import Path

from hivemesh.kernel.sockets import NETNS_DIR, close_netlink, dumped, inside, open_netlink
from hivemesh.model.addr import Address, Prefix
from hivemesh.wire.netlink import ACK, error_of, pack, replies

_NETLINK_SOCK_DIAG, _BY_FAMILY, _DESTROY = 4, 20, 21
_ESTABLISHED_OR_ASKING = 1 << 1 | 1 << 2  # TCP_ESTABLISHED, TCP_SYN_SENT
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states; then the socket's identity, 48 bytes
_IDENTITY_AT, _IDENTITY_LENGTH, _REMOTE_AT = 4, 48, 20  # struct inet_diag_msg, struct inet_diag_sockid
_TIMEOUT = 10.0  # seconds
_NOT_HERE = (errno.ENOENT, errno.EOPNOTSUPP)
"""No inet_diag, or built without INET_DIAG_DESTROY: who waits is told by its own time-out."""


def end(namespace: str, to: Collection[Address]) -> int:
    """End TCP connections of the namespace whose other end is in `to`; how many. Raises `FileNotFoundError` when there
    is no such namespace, `OSError` when the kernel refuses."""
    gone = set(to)
    return _end(namespace, lambda address: address in gone) if gone else 0


def end_strangers(namespace: str, within: Collection[Prefix], *, known: Collection[Address]) -> int:
    """End TCP connections into `within` whose other end is not `known`. Returns and raises what `end` does."""
    return _end(namespace, lambda a: a not in known and any(a in prefix for prefix in within))


def _end(namespace: str, is_doomed: Callable[[Address], bool]) -> int:
    if not _has_tcp(namespace):
        return 0
    sock = open_netlink(namespace, _NETLINK_SOCK_DIAG)
    try:
        sock.settimeout(_TIMEOUT)
        count = 0
        for family in (socket.AF_INET, socket.AF_INET6):
            for identity in _find(sock, family, is_doomed):
                count += _destroy(sock, family, identity)
        return count
    finally:
        close_netlink(sock)


def _has_tcp(namespace: str) -> bool:
    """Looking at all sockets walks a table that all namespaces share: not for one that has none."""

    def look() -> bool:
        lines = Path("/proc/thread-self/net/sockstat").read_text().splitlines()
        lines += Path("/proc/thread-self/net/sockstat6").read_text().splitlines()
        return any(line.startswith("TCP") and line.split()[2] != "0" for line in lines)

    try:
        return inside(f"{NETNS_DIR}/{namespace}", look)
    except FileNotFoundError:
        if not os.path.exists(f"{NETNS_DIR}/{namespace}"):
            raise
        return True  # no such listing: look


def _request(family: int, states: int, identity: bytes) -> bytes:
    return _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + identity


def _find(sock: socket.socket, family: int, is_doomed: Callable[[Address], bool]) -> list[bytes]:
    request = _request(family, _ESTABLISHED_OR_ASKING, bytes(_IDENTITY_LENGTH))
    try:
        listed = [body[_IDENTITY_AT : _IDENTITY_AT + _IDENTITY_LENGTH] for body in dumped(sock, _BY_FAMILY, request)]
    except OSError as error:
        if error.errno in _NOT_HERE:
            return []
        raise
    return [identity for identity in listed if is_doomed(_remote(family, identity))]


def _remote(family: int, identity: bytes) -> Address:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(identity[_REMOTE_AT : _REMOTE_AT + 4])
    address = ipaddress.IPv6Address(identity[_REMOTE_AT : _REMOTE_AT + 16])
    return address.ipv4_mapped or address


def _destroy(sock: socket.socket, family: int, identity: bytes) -> int:
    sock.send(pack(_DESTROY, ACK, 2, _request(family, _ESTABLISHED_OR_ASKING, identity)))
    for reply in replies(sock.recv(1 << 16)):
        code, words = error_of(reply)
        if code and code not in _NOT_HERE:  # ENOENT: ended meanwhile
            raise OSError(code, words or os.strerror(code))
        return int(code == 0)
    return 0
