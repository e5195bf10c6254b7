"""Probes between nodes: small datagrams that all of them send and listen for at the same time. Who hears whom?

Underlay  VXLAN packets of a network nobody has (VNI 1: ours begin at 4096). Every firewall and switch treats them as it
          treats our tunnels; the far kernel drops them unread. A packet socket sees them come in, before that machine's
          own rules. They must not be fragmented (DF), so their sizes show what the path really carries.
Overlay   Datagrams from one `ingress_sbox` to another, through both ends' tunnels, tables and rules: with a UDP
          checksum, without one, and as large as the network carries.

What is seen on the underlay and not in the overlay was lost inside one of the two machines. What comes only without a
checksum was spoilt on its way: a network card that says it fills in checksums inside tunnels, and does not.

Numbers are from linux/in.h, linux/if_packet.h and RFC 7348.
"""

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hivemesh.kernel.packetfilter import Instruction, Test, attach, program
from hivemesh.kernel.sockets import NETNS_DIR, inside
from hivemesh.model.addr import Address

PROBE_PORT = 52377
"""UDP, inside the ingress network only."""
PROBE_VNI = 1
ROUNDS, APART, FIRST, LAST = 8, 0.1, 0.3, 0.5
"""How often each probe is sent, seconds between that, before the first (all nodes must listen by then) and after the
last (the slowest began that much later)."""
LARGE_ROUNDS = (1, 4, 6)
STEPS = (8950, 8000, 4000, 1500, 1480, 1460, 1450, 1430, 1400, 1380, 1350, 1300, 1280)
"""Bytes of IP packets that are tried where the largest wanted does not come through: what tunnels, DSL and providers of
virtual machines leave of 1500, and jumbo frames."""

_MAGIC = b"hm-doctor"
_PROBE = struct.Struct("!9s8sBHBH")  # magic, nonce, kind, number of the sender, round, bytes of the IP packet
_SMALL, _SIZED, _OVERLAY, _BARE, _FULL = range(5)
_VXLAN = struct.pack("!BxxxI", 0x08, PROBE_VNI << 8)
_ETHERNET = bytes.fromhex("020000000001" "020000000002" "88b5")  # fmt: skip  # an EtherType for experiments (IEEE 802)
_UDP_HEADER, _IP_HEADER = 8, {4: 20, 6: 40}
_PMTUDISC_PROBE = 3
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _SO_NO_CHECK = 10, 23, 11
_BUFFER = 8 << 20
_ETH_P = {4: 0x0800, 6: 0x86DD}
_PACKET_OUTGOING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Far:
    """Another node: its number in the roster that all have, its tunnels' end, its address in the ingress network."""

    number: int
    vtep: Address
    inside: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """This node likewise; `namespace` is where `inside` is. `needs`: bytes of the largest packet its tunnels send;
    `carries`: bytes of the largest that the ingress network takes."""

    number: int
    nonce: bytes
    vtep: Address
    port: int
    namespace: str = ""
    inside: Address | None = None
    needs: int
    carries: int


@dataclass(slots=True)
class Ears:
    """What arrived from one node, by kind."""

    small: set[int] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
    overlay: set[int] = field(default_factory=set)
    bare: set[int] = field(default_factory=set)
    full: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Outcome:
    """`heard` by the sender's number, `refused` by the receiver's: why the kernel would not send."""

    heard: dict[int, Ears] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    bad_checksums: int = 0


def cross(near: Near, others: Iterable[Far]) -> Outcome:
    """Send and listen for a little less than two seconds. Blocks. Raises `OSError` when it cannot listen at all."""
    exchange = _Exchange(near, tuple(others))
    try:
        return exchange.run()
    finally:
        exchange.close()


class _Exchange:
    def __init__(self, near: Near, others: tuple[Far, ...]) -> None:
        self._near = near
        self._others = others
        self._outcome = Outcome()
        self._sockets: list[socket.socket] = []
        try:
            version = near.vtep.version
            self._ear = self._keep(_ear(version, near.port))
            self._out = self._keep(_sender(near.vtep, 0))
            self._inside = self._bare = None
            if near.inside is not None and near.namespace:
                address = near.inside
                path = f"{NETNS_DIR}/{near.namespace}"
                self._inside = self._keep(inside(path, lambda: _sender(address, PROBE_PORT)))
                self._bare = self._keep(inside(path, lambda: _sender(address, 0, checksum=False)))
        except BaseException:
            self.close()
            raise

    def _keep(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(sock)
        return sock

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def run(self) -> Outcome:
        before = self._bad_checksums()
        begun = time.monotonic()
        for number in range(ROUNDS):
            self._listen(begun + FIRST + number * APART)
            for far in self._others:
                self._send(far, number)
        self._listen(begun + FIRST + ROUNDS * APART + LAST)
        self._outcome.bad_checksums = max(0, self._bad_checksums() - before)
        return self._outcome

    # --- out --------------------------------------------------------------------------------------------------------

    def _send(self, far: Far, number: int) -> None:
        near = self._near
        if far.vtep.version == near.vtep.version:
            self._try(far, lambda: self._out.sendto(self._tunnelled(_SMALL, number, 0), (str(far.vtep), near.port)))
            if number in LARGE_ROUNDS:
                for size in sorted({near.needs, *(step for step in STEPS if step < near.needs)}):
                    # One larger than the link's own MTU is refused here, and so never heard: that is the answer
                    with contextlib.suppress(OSError):
                        self._out.sendto(self._tunnelled(_SIZED, number, size), (str(far.vtep), near.port))
        if far.inside is None or self._inside is None or self._bare is None:
            return
        there = (str(far.inside), PROBE_PORT)
        for sock, kind in ((self._inside, _OVERLAY), (self._bare, _BARE)):
            with contextlib.suppress(OSError):
                sock.sendto(self._probe(kind, number, 0), there)
        if number in LARGE_ROUNDS:
            headers = _IP_HEADER[far.inside.version] + _UDP_HEADER
            with contextlib.suppress(OSError):
                self._inside.sendto(self._probe(_FULL, number, near.carries).ljust(near.carries - headers, b"."), there)

    def _try(self, far: Far, send: Callable[[], object]) -> None:
        try:
            send()
        except OSError as error:
            self._outcome.refused[far.number] = error.strerror or str(error)

    def _probe(self, kind: int, number: int, size: int) -> bytes:
        return _PROBE.pack(_MAGIC, self._near.nonce, kind, self._near.number, number, size)

    def _tunnelled(self, kind: int, number: int, size: int) -> bytes:
        packet = _VXLAN + _ETHERNET + self._probe(kind, number, size)
        return packet.ljust(size - _IP_HEADER[self._near.vtep.version] - _UDP_HEADER, b".")

    # --- in ---------------------------------------------------------------------------------------------------------

    def _listen(self, until: float) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._ear, selectors.EVENT_READ)
            if self._inside is not None:
                ready.register(self._inside, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0:
                for key, _ in ready.select(left):
                    self._read(key.fileobj)

    def _read(self, sock: object) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                if sock is self._ear:
                    packet, sender = self._ear.recvfrom(1 << 16)
                    if sender[2] != _PACKET_OUTGOING:
                        self._take(packet, packet.find(_MAGIC))
                elif self._inside is not None:
                    with contextlib.suppress(ConnectionError):  # somebody refused one of ours
                        self._take(self._inside.recv(1 << 16), 0)

    def _take(self, packet: bytes, at: int) -> None:
        if at < 0 or len(packet) < at + _PROBE.size:
            return
        magic, nonce, kind, sender, number, size = _PROBE.unpack_from(packet, at)
        if magic != _MAGIC or nonce != self._near.nonce or sender == self._near.number:
            return
        ears = self._outcome.heard.setdefault(sender, Ears())
        match kind:
            case _ if kind == _SMALL:
                ears.small.add(number)
            case _ if kind == _SIZED:
                ears.sizes.add(size)
            case _ if kind == _OVERLAY:
                ears.overlay.add(number)
            case _ if kind == _BARE:
                ears.bare.add(number)
            case _ if kind == _FULL:
                ears.full.add(number)

    def _bad_checksums(self) -> int:
        if not self._near.namespace:
            return 0
        try:
            return inside(f"{NETNS_DIR}/{self._near.namespace}", _spoilt)
        except OSError:
            return 0


def _sender(address: Address, port: int, *, checksum: bool = True) -> socket.socket:
    """A UDP socket at `address` whose packets are never fragmented, whatever the kernel has learnt of the path."""
    six = address.version == 6
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        if not checksum:
            sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        sock.bind((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


def _ear(version: int, port: int) -> socket.socket:
    """A packet socket that hears VXLAN packets with our VNI come in, and nothing else."""
    # Of all links at once; what came in before the filter was there is no probe, and passed over
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(_ETH_P[version]))
    try:
        attach(sock, _filter(version, port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    except BaseException:
        sock.close()
        raise
    return sock


def _filter(version: int, port: int) -> list[Instruction]:
    """UDP to `port` whose payload is VXLAN with our VNI."""
    if version == 4:
        tests = (Test(9, 1, socket.IPPROTO_UDP), Test(2, 2, port, header=0), Test(12, 4, PROBE_VNI << 8, header=0))
    else:
        tests = (Test(6, 1, socket.IPPROTO_UDP), Test(42, 2, port), Test(52, 4, PROBE_VNI << 8))
    return program([tests], 0xFFFF)


def _spoilt() -> int:
    """How many datagrams and segments came with a wrong checksum, so far, in the namespace we are in."""
    count = 0
    with contextlib.suppress(FileNotFoundError):  # no IPv6 here
        for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
            if line.startswith("Udp6InCsumErrors"):
                count += int(line.split()[1])
    rows = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    for names, values in zip(rows[::2], rows[1::2], strict=True):
        if names[0] in ("Udp:", "Tcp:") and "InCsumErrors" in names:
            count += int(values[names.index("InCsumErrors")])
    return count
