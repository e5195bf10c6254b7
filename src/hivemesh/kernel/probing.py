"""Sending the probes of a trace, from inside a namespace, as a program there would: through the same hooks and tables.

TCP    A socket connects, so that whatever leads sockets (eBPF, nftables, IPVS) leads this one. A filter keeps the
       answer from it: the kernel never completes the connection and no server accepts one; a reset ends what the
       server began. Its first sequence number is chosen, as TCP_REPAIR allows, and names the probe.
UDP    A socket that does not connect sends one datagram, whose text says what it is.
ICMP   An echo request, as large as wanted and never fragmented.

Numbers are from linux/tcp.h, linux/in.h, linux/in6.h.
"""

import contextlib
import ipaddress
import os
import random
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from hivemesh.kernel.packetfilter import Test, attach, program
from hivemesh.kernel.sightings import NUMBERS, payload
from hivemesh.kernel.sockets import NETNS_DIR, inside
from hivemesh.model.addr import Address
from hivemesh.wire.trace import Protocol, Watch

_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _TCP_SYNCNT = 19, 20, 21, 7
_SEND_QUEUE = 2
_PMTUDISC_PROBE = 3
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_RST = 0x04
_ECHO = {4: 8, 6: 128}
_HEADERS = {4: 28, 6: 48}  # IP and ICMP
_RESETS_ONLY = [[Test(13, 1, _RST, _RST)]]  # sockets' filters begin at the TCP header
_EPHEMERAL = (32768, 60999)

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`size`: bytes of an echo's IP packet, 0: a small one."""

    number: int
    protocol: Protocol
    namespace: str
    destination: Address
    port: int = 0
    size: int = 0


def new_watch(protocol: Protocol, vxlan: int) -> Watch:
    """A fresh one, unlike any other."""
    first, last = _EPHEMERAL
    return Watch(
        id=os.urandom(8).hex(),
        protocol=protocol,
        base=random.randrange(1, (1 << 32) // (2 * NUMBERS)) * 2 * NUMBERS,
        port=random.randrange(first // NUMBERS, last // NUMBERS) * NUMBERS,
        vxlan=vxlan,
    )


class Prober:
    """Sends probes of one watch and keeps their sockets until it is closed. Blocks for moments."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._kept: dict[int, socket.socket] = {}
        self._probes: dict[int, Probe] = {}

    def send(self, probes: Iterable[Probe]) -> dict[int, str]:
        """Why some could not even be sent, by number, in the kernel's words."""
        by_namespace: dict[str, list[Probe]] = {}
        for probe in probes:
            by_namespace.setdefault(probe.namespace, []).append(probe)
            self._probes[probe.number] = probe
        failed: dict[int, str] = {}
        for namespace, group in by_namespace.items():
            try:
                failed |= _within(namespace, partial(self._send, group))
            except OSError as error:
                failed |= dict.fromkeys((p.number for p in group), error.strerror or str(error))
        return failed

    def _send(self, group: Iterable[Probe]) -> dict[int, str]:
        send = {"tcp": self._connect, "udp": self._datagram, "icmp": self._echo}
        failed = {}
        for probe in group:
            try:
                send[probe.protocol](probe)
            except OSError as error:
                failed[probe.number] = error.strerror or str(error)
        return failed

    def close(self) -> None:
        for sock in self._kept.values():
            sock.close()
        self._kept.clear()

    # --- TCP

    def _connect(self, probe: Probe) -> None:
        sock = _socket(probe.destination, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._kept[probe.number] = sock
        attach(sock, program(_RESETS_ONLY, 0xFFFF))
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_SYNCNT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, _signed(self._sequence(probe.number)))
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
        with contextlib.suppress(BlockingIOError):
            sock.connect((str(probe.destination), probe.port))

    def _sequence(self, number: int) -> int:
        return self._watch.base + 2 * number

    def reset(self, number: int) -> None:
        """End what a server began when it answered: nobody will complete it. Blocks for a moment."""
        probe, sock = self._probes[number], self._kept.pop(number, None)
        if sock is None or probe.protocol != "tcp":
            return
        with sock, contextlib.suppress(OSError):
            own, port = sock.getsockname()[:2]
            _within(probe.namespace, lambda: self._reset(probe, ipaddress.ip_address(own), port))

    def _reset(self, probe: Probe, own: Address, port: int) -> None:
        # Translation, if any, happens to this packet too; a socket that was led is at its backend, whatever it believes
        to = _remote(port, own.version) or probe.destination
        with _socket(to, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
            sock.bind((str(own), 0))
            sock.sendto(_segment(own, to, port, probe.port, self._sequence(probe.number) + 1), (str(to), 0))

    # --- UDP, ICMP

    def _datagram(self, probe: Probe) -> None:
        sock = _socket(probe.destination, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._kept[probe.number] = sock
        sock.bind(("", self._watch.port + probe.number))
        sock.sendto(payload(self._watch, probe.number), (str(probe.destination), probe.port))

    def _echo(self, probe: Probe) -> None:
        version = probe.destination.version
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        text = payload(self._watch, probe.number)
        text = text.ljust(probe.size - _HEADERS[version], b".")
        # an identifier of its own each, or a balancer would take them for one flow
        identifier = (self._watch.base >> 16) + probe.number & 0xFFFF
        message = struct.pack("!BBHHH", _ECHO[version], 0, 0, identifier, probe.number) + text
        if version == 4:  # IPv6's the kernel computes
            message = message[:2] + _checksum(message).to_bytes(2, "big") + message[4:]
        with _socket(probe.destination, socket.SOCK_RAW, protocol) as sock:
            if version == 4:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.sendto(message, (str(probe.destination), 0))


def _within(namespace: str, work: Callable[[], R]) -> R:
    return inside(f"{NETNS_DIR}/{namespace}", work) if namespace else work()


def _socket(to: Address, kind: int, protocol: int = 0) -> socket.socket:
    return socket.socket(socket.AF_INET if to.version == 4 else socket.AF_INET6, kind, protocol)


def _remote(port: int, version: int) -> Address | None:
    """Where the kernel has the socket at that port connected, in the namespace we are in."""
    for line in Path(f"/proc/thread-self/net/tcp{6 if version == 6 else ''}").read_text().splitlines()[1:]:
        local, remote = line.split()[1:3]
        if int(local.rpartition(":")[2], 16) == port:
            words = remote.rpartition(":")[0]
            packed = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
            return ipaddress.ip_address(packed)
    return None


def _segment(source: Address, to: Address, port: int, to_port: int, sequence: int) -> bytes:
    """A reset, with its checksum."""
    bare = struct.pack("!HHIIBBHHH", port, to_port, sequence & 0xFFFFFFFF, 0, 5 << 4, _RST, 0, 0, 0)
    length = len(bare).to_bytes(2 if to.version == 4 else 4, "big")
    filler = b"\0" if to.version == 4 else b"\0\0\0"
    protocol = bytes([socket.IPPROTO_TCP])
    pseudo = source.packed + to.packed + (filler + protocol + length if to.version == 4 else length + filler + protocol)
    return bare[:16] + _checksum(pseudo + bare).to_bytes(2, "big") + bare[18:]


def _checksum(text: bytes) -> int:
    """RFC 1071."""
    total = sum(int.from_bytes(text[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(text), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number
