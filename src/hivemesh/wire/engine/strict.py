"""Reading a client's JSON into a typed value without losing anything on the way.

Docker's clients are written in Go, whose JSON has habits of its own: keys match whatever their case, null means "not
given", and an empty text stands for the default of an enumeration. All that is accepted. A field we do not know and
that says something is refused by its name: a secret or a health check silently dropped would be worse than an error.
"""

import types
import typing
from functools import cache
from typing import Any, TypeVar

import msgspec

from hivemesh.model.errors import Invalid, Unsupported
from hivemesh.wire import codec

T = TypeVar("T")

LARGEST = (1 << 63) - 1
"""Of numbers: larger ones are no amount of anything, and clients written in Go could not read them back."""

INT64 = (-(2**63), 2**63 - 1)
"""What Docker's clients, written in Go, and our store hold in a number."""


def decode(data: bytes) -> Any:
    """Plain JSON. Raises `Invalid` that says what is wrong and where."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise Invalid(f"invalid JSON: {error}") from None
    except RecursionError:
        raise Invalid("invalid JSON: nested too deeply") from None


def read(value: Any, kind: type[T], what: str) -> T:
    """`value` (as `decode` gives it) as a `kind`; `what` names it in errors.

    Raises `Unsupported` naming a field we do not know and that is not empty, `Invalid` for a wrong type.
    """
    try:
        return codec.convert(_known(value, kind, ""), kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"invalid {what}: {error}") from None


def empty(value: Any) -> bool:
    """Nothing is said: null, zero, false, no text, or only that inside."""
    if isinstance(value, dict):
        return all(empty(inner) for inner in value.values())
    if isinstance(value, list):
        return not value
    return not value


def pick(value: dict[str, Any], name: str) -> Any:
    """The field `name` whatever its case, or None."""
    if name in value:
        return value[name]
    return next((inner for key, inner in value.items() if key.lower() == name.lower()), None)


def section(value: Any, name: str) -> dict[str, Any]:
    """The field `name` of an object, an object itself; empty when nothing is said. Raises `Invalid`."""
    inner = pick(value, name) if value else None
    if inner is not None and not isinstance(inner, dict):
        raise Invalid(f"invalid {name}: expected an object")
    return inner or {}


def entries(value: dict[str, Any], name: str) -> list[Any]:
    """The field `name`, a list; empty when nothing is said. Raises `Invalid`."""
    inner = pick(value, name)
    if inner is not None and not isinstance(inner, list):
        raise Invalid(f"invalid {name}: expected a list")
    return inner or []


def _known(value: Any, kind: Any, path: str) -> Any:
    """`value` with names as `kind` spells them, without nulls, and without unknown fields that are empty."""
    kind = _bare(kind)
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields, result = _fields(kind), {}
        for key, inner in value.items():
            where = f"{path}.{key}" if path else key
            field = fields.get(key.lower())
            if field is None:
                if not empty(inner):
                    raise Unsupported(f"{where} is not supported")
            elif inner is not None and not (inner == "" and typing.get_origin(_bare(field.type)) is typing.Literal):
                result[field.encode_name] = _known(inner, field.type, where)
        return result
    if isinstance(value, list) and typing.get_origin(kind) is tuple:
        (element, *_) = typing.get_args(kind)
        return [_known(inner, element, f"{path}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, int) and not INT64[0] <= value <= INT64[1]:
        raise Invalid(f"{path or 'the number'}: {value} is out of range: use {INT64[0]} to {INT64[1]}")
    if isinstance(value, int) and not -LARGEST - 1 <= value <= LARGEST:
        raise Invalid(f"{path}: {value} is out of range")
    return value


def _bare(kind: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (choice for choice in typing.get_args(kind) if choice is not type(None))
    return kind


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name.lower(): field for field in msgspec.structs.fields(kind)}
