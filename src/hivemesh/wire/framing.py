"""Values on a stream of bytes: MessagePack with a length before each."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from hivemesh.wire import codec

_LENGTH = 4

T = TypeVar("T")


def framed(value: object) -> bytes:
    data = codec.pack(value)
    return len(data).to_bytes(_LENGTH, "big") + data


class Unframer(Generic[T]):
    """Pieces of a stream in, values out. Raises `ValueError` for what nobody of ours would send."""

    def __init__(self, kind: Any, most: int) -> None:
        """`kind` is the type of what comes, or a union; `most` bytes one may have."""
        self._kind = kind
        self._most = most
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[T]:
        self._rest += piece
        while len(self._rest) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._rest[:_LENGTH], "big")
            if end > self._most:
                raise ValueError(f"a frame of {end} bytes, where {self._most} are the most")
            if len(self._rest) < end:
                return
            yield codec.unpack(bytes(self._rest[_LENGTH:end]), self._kind)
            del self._rest[:end]
