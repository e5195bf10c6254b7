"""Netlink framing: messages and attributes to bytes and back. No sockets here.

Numbers are from linux/netlink.h. All integers are in the machine's byte order unless a kind says otherwise.
"""

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

REQUEST, ACK, DUMP_INTERRUPTED = 0x1, 0x4, 0x10
DUMP, REPLACE, EXCLUSIVE, CREATE, APPEND = 0x300, 0x100, 0x200, 0x400, 0x800
ERROR, DONE = 2, 3
NESTED = 0x8000
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_EXT_ACK_MESSAGE = 1


@dataclass(frozen=True, slots=True)
class Message:
    """One change asked of the kernel: a verb such as `set_fdb`, what it is about in words, and the message's parts."""

    verb: str
    subject: str
    kind: int
    flags: int
    body: bytes

    def __str__(self) -> str:
        return f"{self.verb} {self.subject}"


class Reply(NamedTuple):
    """One message of the kernel. `sender` is the port id of the socket whose request caused it (0: the kernel)."""

    kind: int
    flags: int
    sequence: int
    sender: int
    body: bytes


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A whole message; `flags` without REQUEST."""
    return _HEADER.pack(16 + len(body), kind, flags | REQUEST, sequence, 0) + body + bytes(-len(body) % 4)


def replies(data: bytes) -> Iterator[Reply]:
    """The messages of one datagram."""
    position = 0
    while position + 16 <= len(data):
        length, kind, flags, sequence, sender = _HEADER.unpack_from(data, position)
        yield Reply(kind, flags, sequence, sender, data[position + 16 : position + length])
        position += (length + 3) & ~3


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(inner))


def u8(kind: int, number: int) -> bytes:
    return attribute(kind, bytes([number]))


def u16(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("=H", number))


def u32(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("=I", number))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes of a message's body from `start` on, by kind; of a repeated kind the last."""
    found: dict[int, bytes] = {}
    position, end = start, len(data)
    while position + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[position + 4 : position + length]
        position += (length + 3) & ~3
    return found


def number(data: bytes) -> int:
    """An integer attribute of any width, in the machine's byte order."""
    return int.from_bytes(data, sys.byteorder)


def string(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def error_of(reply: Reply) -> tuple[int, str]:
    """errno (0: an acknowledgement) of an ERROR reply, and the kernel's own words if it has any.

    Needs NETLINK_CAP_ACK on the socket: the reply then does not carry the request back, only its header.
    """
    code = -struct.unpack_from("=i", reply.body)[0]
    words = attributes(reply.body, 20).get(_EXT_ACK_MESSAGE, b"") if len(reply.body) > 20 else b""
    return code, string(words)
