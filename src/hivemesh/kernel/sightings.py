"""Seeing probes of a trace: packet sockets in namespaces, with a filter that takes the probes and nothing else.

One socket hears all links of a namespace, each packet once per link and direction, also inside tunnels as the machine
sends and gets them: on its way in before any rule of the machine, on its way out after all. The kernel keeps what came
until it is read, with its time.

Numbers are from linux/if_packet.h, linux/if_ether.h, linux/socket.h, and RFCs 791, 793, 7348, 8200.
"""

import ipaddress
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hivemesh.kernel.packetfilter import Instruction, Test, attach, program
from hivemesh.kernel.sockets import NETNS_DIR, inside
from hivemesh.model.addr import Address
from hivemesh.wire.trace import Kind, Sighting, Watch

NUMBERS = 512
"""Probes that one trace may send."""
BASE_MASK = 0xFFFFFFFF ^ (2 * NUMBERS - 1)
PORT_MASK = 0xFFFF ^ (NUMBERS - 1)
PAYLOAD = b"hivemesh trace, "
"""What datagrams and echoes begin with; then the watch's base as eight hexadecimal digits, a space, the number."""

_ETH_P_ALL, _PACKET_OUTGOING = 0x0003, 4
_SO_TIMESTAMPNS = 35
_SNAP = 256  # bytes: all headers of a tunnelled packet, and of one that an ICMP error quotes
_BUFFER = 1 << 20
_MOST = 4000  # sightings of one socket
_TUNNEL = 8 + 8 + 14  # UDP, VXLAN, Ethernet
_IP_HEADER = {4: 20, 6: 40}
_TCP, _UDP, _ICMP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_ECHO, _ERRORS = {4: (8, 0), 6: (128, 129)}, {4: (3, 11), 6: (1, 2, 3)}
_RST, _ACK = 0x04, 0x10
_WORDS = {
    (4, 3, 0): "network unreachable", (4, 3, 1): "host unreachable", (4, 3, 3): "port unreachable",
    (4, 3, 4): "packet too large", (4, 3, 9): "prohibited", (4, 3, 10): "prohibited", (4, 3, 13): "prohibited",
    (6, 1, 0): "no route", (6, 1, 1): "prohibited", (6, 1, 3): "address unreachable", (6, 1, 4): "port unreachable",
    (6, 2, 0): "packet too large",
}  # fmt: skip


class Ear:
    """Hears the probes of a watch in one namespace ("": the machine's own) until it is closed.

    Raises `FileNotFoundError` when there is no such namespace, `OSError` when this process may not listen.
    """

    def __init__(self, namespace: str, watch: Watch) -> None:
        self.namespace = namespace
        self._watch = watch
        self._names: dict[int, str] = {}
        self.socket = inside(f"{NETNS_DIR}/{namespace}", self._open) if namespace else self._open()

    def _open(self) -> socket.socket:
        # Of all links at once; what came before the filter was there is no probe, and passed over
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL))
        try:
            attach(sock, filter_of(self._watch))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        self.socket.close()

    def read(self) -> Iterator[Sighting]:
        """What came since the last time."""
        for _ in range(_MOST):
            try:
                packet, extra, _, sender = self.socket.recvmsg(_SNAP, 64)
            except BlockingIOError:
                return
            except OSError:  # the link that it heard last went down: the next call hears the others
                continue
            stamp = next((d for level, kind, d in extra if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS)), b"")
            seconds, nanoseconds = struct.unpack("qq", stamp) if stamp else (time.time(), 0)
            out = sender[2] == _PACKET_OUTGOING
            for seen in understood(packet, self._watch):
                yield Sighting(
                    namespace=self.namespace, link=sender[0], out=out, number=seen.number,
                    back=seen.back, kind=seen.kind, source=seen.source, destination=seen.destination, size=seen.size,
                    at=seconds + nanoseconds / 1e9, far=None if seen.outer is None else seen.outer[out],
                    error=seen.error,
                )  # fmt: skip


def filter_of(watch: Watch) -> list[Instruction]:
    """Probes and answers, bare and in tunnels, and all of ICMP, which is little and quotes probes. Pure."""
    port = watch.vxlan
    places = (
        (0, ()),
        (_IP_HEADER[4] + _TUNNEL, (Test(0, 1, 0x45), Test(9, 1, _UDP), Test(22, 2, port))),
        (_IP_HEADER[6] + _TUNNEL, (Test(0, 1, 0x60, 0xF0), Test(6, 1, _UDP), Test(42, 2, port))),
    )
    fields: list[tuple[int, int, int, int]] = []
    if watch.protocol == "tcp":
        fields = [(4, 4, watch.base, BASE_MASK), (8, 4, watch.base, BASE_MASK)]
    elif watch.protocol == "udp":
        fields = [(0, 2, watch.port, PORT_MASK), (2, 2, watch.port, PORT_MASK)]
    transport = _TCP if watch.protocol == "tcp" else _UDP
    found: list[tuple[Test, ...]] = []
    for at, outer in places:
        four, six = Test(at, 1, 0x40, 0xF0), Test(at, 1, 0x60, 0xF0)
        for field, width, value, mask in fields:
            found.append((*outer, four, Test(at + 9, 1, transport), Test(at + field, width, value, mask, header=at)))
            found.append((*outer, six, Test(at + 6, 1, transport), Test(at + 40 + field, width, value, mask)))
        found.append((*outer, four, Test(at + 9, 1, _ICMP[4])))
        found.append((*outer, six, Test(at + 6, 1, _ICMP[6])))
    return program(found, _SNAP)


# --- reading packets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """`outer`: source and destination of the tunnel's packet."""

    number: int
    back: bool
    kind: Kind
    source: Address
    destination: Address
    size: int
    outer: tuple[Address, Address] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _IP:
    version: int
    protocol: int
    source: Address
    destination: Address
    size: int
    body: bytes


def understood(packet: bytes, watch: Watch) -> Iterator[Understood]:
    """What a packet, from its IP header on, is of the watch's probes: one thing or nothing. Pure."""
    found = _ip(packet)
    if found is None:
        return
    outer = None
    if found.protocol == _UDP and found.body[2:4] == watch.vxlan.to_bytes(2, "big"):
        outer = found.source, found.destination
        found = _ip(found.body[_TUNNEL:])
        if found is None:
            return
    told = _meaning(found, watch)
    if told is not None:
        number, back, kind, error = told
        yield Understood(
            number=number, back=back, kind=kind, source=found.source, destination=found.destination, size=found.size,
            outer=outer, error=error,
        )  # fmt: skip


def _ip(packet: bytes) -> _IP | None:
    if len(packet) < _IP_HEADER[4]:
        return None
    if packet[0] >> 4 == 4:
        if int.from_bytes(packet[6:8], "big") & 0x1FFF:  # a later fragment
            return None
        return _IP(
            4, packet[9], ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20]),
            int.from_bytes(packet[2:4], "big"), packet[(packet[0] & 15) * 4 :],
        )  # fmt: skip
    if packet[0] >> 4 == 6 and len(packet) >= _IP_HEADER[6]:
        return _IP(
            6, packet[6], ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40]),
            40 + int.from_bytes(packet[4:6], "big"), packet[40:],
        )  # fmt: skip
    return None


_Meaning = tuple[int, bool, Kind, str]
"""Number, whether it is an answer, kind, an error's words."""


def _meaning(found: _IP, watch: Watch) -> _Meaning | None:
    body = found.body
    if found.protocol == _TCP and watch.protocol == "tcp" and len(body) >= 8:
        # an error quotes no more than eight bytes for certain
        _, sequence, acknowledged, flags = struct.unpack_from("!IIIxB", body.ljust(14, b"\0"))
        if flags & _ACK and (number := _number(acknowledged, watch.base, BASE_MASK, 1)) is not None:
            return number, True, "reset" if flags & _RST else "syn-ack", ""
        if (number := _number(sequence, watch.base, BASE_MASK, 1)) is not None:
            return number, False, "reset" if flags & _RST else "syn", ""
    elif found.protocol == _UDP and watch.protocol == "udp" and len(body) >= 4:
        source, destination = struct.unpack_from("!HH", body)
        if (number := _number(source, watch.port, PORT_MASK, 0)) is not None:
            return number, False, "datagram", ""
        if (number := _number(destination, watch.port, PORT_MASK, 0)) is not None:
            return number, True, "datagram", ""
    elif found.protocol == _ICMP[found.version] and len(body) >= 8:
        return _of_icmp(found, watch)
    return None


def _number(value: int, base: int, mask: int, shift: int) -> int | None:
    return (value & ~mask & 0xFFFFFFFF) >> shift if value & mask == base else None


def _of_icmp(found: _IP, watch: Watch) -> _Meaning | None:
    kind, code = found.body[0], found.body[1]
    asks, answers = _ECHO[found.version]
    if kind in (asks, answers):
        number = number_in(found.body[8:], watch)
        return None if number is None else (number, kind == answers, "echo", "")
    if kind not in _ERRORS[found.version]:
        return None
    quoted = _ip(found.body[8:])
    about = None if quoted is None else _meaning(quoted, watch)
    if about is None:
        return None
    words = _WORDS.get((found.version, kind, code)) or f"ICMP type {kind}, code {code}"
    return about[0], not about[1], "error", words


def payload(watch: Watch, number: int) -> bytes:
    """Of a datagram or an echo."""
    return PAYLOAD + b"%08x %03d\n" % (watch.base, number)


def number_in(text: bytes, watch: Watch) -> int | None:
    """Of the probe that carries `text`."""
    begin = PAYLOAD + b"%08x " % watch.base
    rest = text[len(begin) : len(begin) + 3]
    return int(rest) if text.startswith(begin) and rest.isdigit() else None


def listen(namespaces: Iterable[str], watch: Watch) -> tuple[Ear, ...]:
    """One for each that is there."""
    ears = []
    for namespace in namespaces:
        try:
            ears.append(Ear(namespace, watch))
        except FileNotFoundError:
            continue
        except BaseException:
            for ear in ears:
                ear.close()
            raise
    return tuple(ears)
