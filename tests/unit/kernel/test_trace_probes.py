"""Probes of traces as packets: what the filter takes, and what a packet is of whose probe."""

import ipaddress
import struct

import pytest

from hivemesh.kernel.packetfilter import Instruction
from hivemesh.kernel.probing import new_watch
from hivemesh.kernel.sightings import filter_of, payload, understood
from hivemesh.wire.trace import Protocol, Watch

V4 = ("10.0.0.11", "10.0.0.22")
V6 = ("fd10::b", "fd10::16")
VTEPS = {4: ("198.51.100.11", "198.51.100.12"), 6: ("fd00:5e::11", "fd00:5e::12")}
_HEADER_LENGTH, _AND, _EQUAL, _GIVE = 0xB1, 0x54, 0x15, 0x06
_WIDTHS = {0x30: 1, 0x28: 2, 0x20: 4, 0x50: 1, 0x48: 2, 0x40: 4}


def taken(program: list[Instruction], packet: bytes) -> int:
    """What the kernel's machine would do with it: how many bytes it takes."""
    at = a = x = 0
    while True:
        code, true, false, value = program[at]
        at += 1
        if code == _GIVE:
            return value
        if code == _HEADER_LENGTH:
            if value >= len(packet):
                return 0
            x = 4 * (packet[value] & 15)
        elif code == _AND:
            a &= value
        elif code == _EQUAL:
            at += true if a == value else false
        else:
            place = value + (x if code & 0x40 else 0)
            if place + _WIDTHS[code] > len(packet):
                return 0
            a = int.from_bytes(packet[place : place + _WIDTHS[code]], "big")


def ip(ends: tuple[str, str], protocol: int, body: bytes, options: bytes = b"") -> bytes:
    source, destination = (ipaddress.ip_address(end) for end in ends)
    if source.version == 4:
        first = 0x45 + len(options) // 4
        head = struct.pack("!BBHHHBBH", first, 0, 20 + len(options) + len(body), 0, 0, 64, protocol, 0)
        return head + source.packed + destination.packed + options + body
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source.packed + destination.packed + body


def tcp(sequence: int, acknowledged: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, 80, sequence, acknowledged, 5 << 4, flags, 0, 0, 0)


def udp(source: int, destination: int, body: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(body), 0) + body


def tunnelled(version: int, packet: bytes, port: int = 4789) -> bytes:
    ethernet = bytes(12) + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd")
    return ip(VTEPS[version], 17, udp(50000, port, struct.pack("!BxxxI", 8, 4096 << 8) + ethernet + packet))


def icmp(kind: int, code: int, body: bytes, ends: tuple[str, str]) -> bytes:
    return ip(ends, 1 if "." in ends[0] else 58, struct.pack("!BBHI", kind, code, 0, 0) + body)


def watch(protocol: Protocol = "tcp") -> Watch:
    return new_watch(protocol, 4789)


def packets(seen: Watch) -> list[tuple[bytes, tuple[int, bool, str]]]:
    """Packets of the watch's probe 7, and what each is."""
    found = []
    for ends in (V4, V6):
        back = (ends[1], ends[0])
        if seen.protocol == "tcp":
            found.append((ip(ends, 6, tcp(seen.base + 14, 0, 0x02)), (7, False, "syn")))
            found.append((ip(back, 6, tcp(99, seen.base + 15, 0x12)), (7, True, "syn-ack")))
            found.append((ip(back, 6, tcp(0, seen.base + 15, 0x14)), (7, True, "reset")))
            found.append((ip(ends, 6, tcp(seen.base + 15, 0, 0x04)), (7, False, "reset")))
            probe = found[-4][0]
        elif seen.protocol == "udp":
            found.append((ip(ends, 17, udp(seen.port + 7, 53, payload(seen, 7))), (7, False, "datagram")))
            found.append((ip(back, 17, udp(53, seen.port + 7, b"?")), (7, True, "datagram")))
            probe = found[-2][0]
        else:
            asks, answers = (8, 0) if ends == V4 else (128, 129)
            found.append((icmp(asks, 0, payload(seen, 7), ends), (7, False, "echo")))
            found.append((icmp(answers, 0, payload(seen, 7), back), (7, True, "echo")))
            probe = found[-2][0]
        kind, code = (3, 3) if ends == V4 else (1, 4)
        found.append(
            (icmp(kind, code, probe[: len(probe) if seen.protocol == "icmp" else 48], back), (7, True, "error"))
        )
    return found


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("tunnel", [0, 4, 6])
def test_probes_and_answers_are_taken_and_understood_bare_and_in_tunnels(protocol: Protocol, tunnel: int) -> None:
    seen = watch(protocol)
    for packet, meaning in packets(seen):
        carried = tunnelled(tunnel, packet) if tunnel else packet
        assert taken(filter_of(seen), carried) > 0
        (one,) = understood(carried, seen)
        assert (one.number, one.back, one.kind) == meaning
        outer = tuple(ipaddress.ip_address(end) for end in VTEPS[tunnel]) if tunnel else None
        assert one.outer == outer
        if one.kind == "error":
            assert one.error == "port unreachable"


def test_header_with_options_is_understood() -> None:
    seen = watch()
    packet = ip(V4, 6, tcp(seen.base, 0, 0x02), options=b"\x01" * 8)
    assert taken(filter_of(seen), packet) > 0
    assert [one.number for one in understood(packet, seen)] == [0]


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_packets_of_others_are_nothing(protocol: Protocol) -> None:
    seen, other = watch(protocol), watch(protocol)
    while other.base == seen.base or other.port == seen.port:
        other = watch(protocol)
    for packet, _ in packets(other):
        assert list(understood(packet, seen)) == []
        if packet[9 if packet[0] >> 4 == 4 else 6] in (6, 17):
            assert taken(filter_of(seen), packet) == 0
            assert taken(filter_of(seen), tunnelled(4, packet)) == 0
    for length in range(80):  # what was cut off is no error
        for packet, _ in packets(seen):
            assert len(list(understood(tunnelled(4, packet)[:length], seen))) <= 1
            assert len(list(understood(packet[:length], seen))) <= 1
