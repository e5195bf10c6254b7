"""Classic BPF for packet sockets: which packets they take, as alternatives of tests.

Offsets count from the network header, as sockets of type SOCK_DGRAM see packets. Numbers are from linux/filter.h.
"""

import ctypes
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, value."""

_BYTE, _HALF, _WORD = 0x30, 0x28, 0x20  # loads from a fixed place
_FROM_HEADER = 0x20  # added to those: X and the place
_HEADER_LENGTH = 0xB1  # X := four times the low half of that byte
_AND, _EQUAL, _GIVE = 0x54, 0x15, 0x06
_SO_ATTACH_FILTER = 26
_LOADS = {1: _BYTE, 2: _HALF, 4: _WORD}


@dataclass(frozen=True, slots=True)
class Test:
    """The `width` bytes at `at`, masked, equal `value`. `header`: where an IPv4 header begins whose length is added."""

    at: int
    width: int
    value: int
    mask: int = 0xFFFFFFFF
    header: int | None = None


def program(alternatives: Iterable[Iterable[Test]], most: int) -> list[Instruction]:
    """Takes the first `most` bytes of packets that pass all tests of some alternative. Pure."""
    found: list[Instruction] = []
    for tests in alternatives:
        part: list[Instruction] = []
        for test in tests:
            if test.header is not None:
                part.append((_HEADER_LENGTH, 0, 0, test.header))
            part.append((_LOADS[test.width] + (_FROM_HEADER if test.header is not None else 0), 0, 0, test.at))
            if test.mask != 0xFFFFFFFF:
                part.append((_AND, 0, 0, test.mask))
            part.append((_EQUAL, 0, -1, test.value))
        part.append((_GIVE, 0, 0, most))
        found += [
            (code, true, len(part) - 1 - at if false < 0 else false, value)
            for at, (code, true, false, value) in enumerate(part)
        ]
    return [*found, (_GIVE, 0, 0, 0)]


def attach(sock: socket.socket, instructions: Iterable[Instruction]) -> None:
    """From now on `sock` takes only what they let through; what came before stays in its queue."""
    steps = list(instructions)
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("HP", len(steps), ctypes.addressof(buffer))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
