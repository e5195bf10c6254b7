"""What IPVS of a namespace has counted: connections by service and destination. Asked in plain netlink, as often as
somebody scrapes: the library that changes services takes 1 ms for each.

Numbers are from linux/ip_vs.h and linux/genetlink.h.
"""

import ipaddress
import struct
from collections.abc import Iterator

from hivemesh.kernel.ipvs import Key
from hivemesh.kernel.sockets import close_netlink, dumped, open_netlink
from hivemesh.model.addr import Address
from hivemesh.wire.netlink import ERROR, attributes, error_of, nested, number, pack, replies, text, u16, u32

_NETLINK_GENERIC, _CONTROL, _GET_FAMILY = 16, 16, 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_GET_SERVICE, _GET_DESTINATION = 4, 8
_SERVICE, _DESTINATION = 1, 2
_FAMILY, _MARK, _SERVICE_STATS = 1, 5, 10
_ADDRESS, _STATS = 1, 10
_CONNECTIONS = 1
_INET = 2


def connections(namespace: str) -> dict[Key, int]:
    """By family and mark, since the service was made, two seconds late at most: the kernel sums its processors' counts
    up that often. Empty where it has no IPVS.

    Raises `FileNotFoundError` when there is no such namespace, `OSError`.
    """
    with _Asker(namespace) as asker:
        return dict(asker.services())


def connections_by_backend(namespace: str) -> dict[Key, dict[Address, int]]:
    """The same of each destination; services that had no connection are left out."""
    with _Asker(namespace) as asker:
        return {key: asker.destinations(key) for key, count in list(asker.services()) if count}


class _Asker:
    def __init__(self, namespace: str) -> None:
        self._socket = open_netlink(namespace, _NETLINK_GENERIC)
        self._number = 0

    def __enter__(self) -> "_Asker":
        self._socket.settimeout(10)
        self._socket.send(pack(_CONTROL, 0, 1, _header(_GET_FAMILY) + text(_FAMILY_NAME, "IPVS")))
        for reply in replies(self._socket.recv(1 << 16)):
            if reply.kind != ERROR:
                self._number = number(attributes(reply.body, 4)[_FAMILY_ID])
            elif error_of(reply)[0] not in (0, 2):  # ENOENT: no IPVS
                raise OSError(*error_of(reply))
        return self

    def __exit__(self, *_: object) -> None:
        close_netlink(self._socket)

    def services(self) -> Iterator[tuple[Key, int]]:
        if not self._number:
            return
        for body in dumped(self._socket, self._number, _header(_GET_SERVICE)):
            found = attributes(attributes(body, 4).get(_SERVICE, b""))
            if _MARK in found:
                yield (number(found[_FAMILY]), number(found[_MARK])), _connections(found.get(_SERVICE_STATS, b""))

    def destinations(self, key: Key) -> dict[Address, int]:
        asked = nested(_SERVICE, u16(_FAMILY, key[0]), u32(_MARK, key[1]))
        shown = {}
        for body in dumped(self._socket, self._number, _header(_GET_DESTINATION) + asked):
            found = attributes(attributes(body, 4).get(_DESTINATION, b""))
            address = ipaddress.ip_address(found[_ADDRESS][: 4 if key[0] == _INET else 16])
            shown[address] = _connections(found.get(_STATS, b""))
        return shown


def _header(command: int) -> bytes:
    return struct.pack("=BBH", command, 1, 0)


def _connections(stats: bytes) -> int:
    return number(attributes(stats).get(_CONNECTIONS, b""))
