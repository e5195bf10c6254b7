"""Values to JSON and MessagePack and back: msgspec with hooks for addresses."""

import functools
import ipaddress
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def _encode(value: Any) -> Any:
    if isinstance(value, ipaddress._IPAddressBase):
        return str(value)
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def _decode(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    if issubclass(kind, ipaddress._BaseNetwork):
        return ipaddress.ip_network(value)
    return _address(value)


@functools.lru_cache(maxsize=4096)
def _address(text: str) -> Any:
    """Parsing takes 5 µs, and the same few addresses come again with every delta of a published port."""
    return ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address(text)


_json_encoder = msgspec.json.Encoder(enc_hook=_encode)
_msgpack_encoder = msgspec.msgpack.Encoder(enc_hook=_encode)


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return _json_encoder.encode(value)


def from_json(data: bytes | str, kind: type[T]) -> T:
    """Raises `msgspec.ValidationError` or `msgspec.DecodeError` with a path such as `$.Spec.Name`."""
    return msgspec.json.decode(data, type=kind, dec_hook=_decode)


def to_builtins(value: Any) -> Any:
    """Dicts, lists and text, as `json.loads(to_json(value))` would give."""
    return msgspec.to_builtins(value, enc_hook=_encode)


def convert(value: Any, kind: type[T]) -> T:
    """The inverse of `to_builtins`; raises `msgspec.ValidationError`."""
    return msgspec.convert(value, type=kind, dec_hook=_decode)


def pack(value: Any) -> bytes:
    """MessagePack."""
    return _msgpack_encoder.encode(value)


def unpack(data: bytes, kind: type[T]) -> T:
    """Raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_decode)
