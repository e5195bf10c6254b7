"""New connections of a namespace, as its connection tracking tells of them.

Bounded wherever somebody may be faster than we are: the kernel keeps what fits into a socket's buffer and counts what
does not, so that what was lost is a number and never a wait. Without a listener the kernel makes no events at all.

Numbers are from linux/netfilter/nfnetlink_compat.h, nfnetlink_conntrack.h, and linux/sock_diag.h.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from hivemesh.kernel.packetfilter import Instruction, attach
from hivemesh.kernel.sockets import close_netlink, open_netlink
from hivemesh.model.addr import Address
from hivemesh.wire.netlink import attributes, replies

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NEW = 1  # NFNLGRP_CONNTRACK_NEW
_NEW = 0x100  # subsystem 1, IPCTNL_MSG_CT_NEW
_ORIGINAL, _REPLY = 1, 2
_IP, _PROTOCOL = 1, 2
_SO_MEMINFO, _DROPS = 55, 8
_BUFFER = 256 << 10
"""Bytes asked of the kernel, which doubles them: some 500 events."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """One connection: as its client began it, and who answers it (translated, that is another address).

    Ports are 0 where the protocol has none.
    """

    protocol: int
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    answers: Address
    answers_port: int

    @property
    def translated(self) -> bool:
        return (self.answers, self.answers_port) != (self.destination, self.destination_port)


class FlowSocket:
    """Hears of one namespace's new connections until closed, and keeps it alive as long."""

    def __init__(self, namespace: str, led_past: tuple[IPv4Address, IPv6Address] | None = None) -> None:
        """With `led_past`, only of connections that are led to another address than they asked for, and to none of
        these. Raises `FileNotFoundError` when there is no such namespace, `OSError` when the kernel tells nothing."""
        self._socket = open_netlink(namespace, _NETLINK_NETFILTER)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            if led_past is not None:
                attach(self._socket, sieve(*led_past))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NEW)
        except BaseException:
            self.close()
            raise
        self._lost = 0

    def close(self) -> None:
        close_netlink(self._socket)

    def read(self, most: int) -> list[Tracked]:
        """What has come, at most so many."""
        found: list[Tracked] = []
        while len(found) < most:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS, when there was no room: `lost` has the number
                continue
            found += [tracked for reply in replies(data) if reply.kind == _NEW and (tracked := parse(reply.body))]
        return found

    def lost(self) -> int:
        """How many there was no room for since the last call."""
        memory = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS + 1))
        if len(memory) < 4 * (_DROPS + 1):
            return 0
        (now,) = struct.unpack_from("=I", memory, 4 * _DROPS)
        before, self._lost = self._lost, now
        return int((now - before) & 0xFFFFFFFF)


def parse(body: bytes) -> Tracked | None:
    """The body of an event; None for what is no connection between addresses."""
    attrs = attributes(body, 4)
    original, reply = _ends(attrs.get(_ORIGINAL, b"")), _ends(attrs.get(_REPLY, b""))
    if original is None or reply is None:
        return None
    protocol, source, source_port, destination, destination_port = original
    return Tracked(protocol, source, source_port, destination, destination_port, reply[1], reply[2])


def _ends(data: bytes) -> tuple[int, Address, int, Address, int] | None:
    parts = attributes(data)
    addresses, protocol = attributes(parts.get(_IP, b"")), attributes(parts.get(_PROTOCOL, b""))
    source, destination = addresses.get(1, addresses.get(3)), addresses.get(2, addresses.get(4))
    if source is None or destination is None:
        return None
    return (
        protocol.get(1, b"\0")[0],
        ipaddress.ip_address(source),
        int.from_bytes(protocol.get(2, b""), "big"),
        ipaddress.ip_address(destination),
        int.from_bytes(protocol.get(3, b""), "big"),
    )


def sieve(v4: IPv4Address, v6: IPv6Address) -> list[Instruction]:
    """What lets through only events of connections that are led somewhere, and to neither of these.

    The kernel's own sieve: what it leaves out takes no room, and is not lost. An event begins with the tuples of both
    directions, each with two addresses, protocol and two ports, so the place of every word is known. What has no ports
    lies elsewhere, and is dropped or given by chance: it comes through no port. Numbers are from linux/filter.h.
    """
    give, drop = (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)
    ipv4 = [*_alike((40,), (84,), v4), drop, give]
    ipv6 = [*_alike((52, 56, 60, 64), (108, 112, 116, 120), v6), drop, give]
    load_byte, equal = 0x30, 0x15
    return [(load_byte, 0, 0, 16), (equal, len(ipv4), 0, socket.AF_INET6), *ipv4, *ipv6]


def _alike(asked: tuple[int, ...], answers: tuple[int, ...], address: Address) -> list[Instruction]:
    """Goes on with the next step where the address at `answers` is that at `asked`, or `address`; else one further."""
    load, keep, equal_kept, equal = 0x20, 0x07, 0x1D, 0x15
    words = struct.unpack(f">{len(asked)}I", address.packed)
    second: list[Instruction] = []
    for number, (at, word) in enumerate(zip(answers, words, strict=True)):
        second += [(load, 0, 0, at), (equal, 0, 2 * (len(words) - number - 1) + 1, word)]
    first: list[Instruction] = []
    for number, (one, other) in enumerate(zip(asked, answers, strict=True)):
        # the first word that differs leads to the second comparison, all alike past it
        left = 4 * (len(asked) - number - 1)
        past = len(second) if left == 0 else 0
        first += [(load, 0, 0, one), (keep, 0, 0, 0), (load, 0, 0, other), (equal_kept, past, left, 0)]
    return first + second
