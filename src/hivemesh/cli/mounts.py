"""`--mount` of services: `type=bind,source=/data,target=/data,readonly` as the API's JSON."""

import csv
from collections.abc import Callable
from typing import Any

from hivemesh.cli import values
from hivemesh.model.errors import Invalid

Json = dict[str, Any]
TYPES = ("bind", "volume", "tmpfs", "image")
TRUE, FALSE = ("", "1", "true"), ("0", "false")
RECURSION: dict[str, Json] = {
    "enabled": {},
    "disabled": {"NonRecursive": True},
    "writable": {"ReadOnlyNonRecursive": True},
    "readonly": {"ReadOnlyForceRecursive": True},
}
"""Values of `bind-recursive`."""


def mount(text: str) -> Json:
    """Parts are separated by commas; one that holds a comma stands in double quotes. Raises `Invalid`."""
    result: Json = {"Type": "volume"}
    (parts,) = csv.reader([text])
    for part in parts:
        key, _, value = part.partition("=")
        key = key.strip().lower()
        try:
            parse = KEYS[key]
        except KeyError:
            known = ", ".join(sorted(KEYS))
            raise Invalid(f"invalid mount {text!r}: unknown key {key!r}; use {known}") from None
        try:
            parse(result, value)
        except ValueError as error:
            raise Invalid(f"invalid mount {text!r}: {key}: {error}") from None
    if not result.get("Target"):
        raise Invalid(f"invalid mount {text!r}: target is missing")
    if result["Type"] not in TYPES:
        raise Invalid(f"invalid mount {text!r}: type {result['Type']!r} is none of {', '.join(TYPES)}")
    return result


def _text(*path: str) -> Callable[[Json, str], None]:
    def parse(result: Json, value: str) -> None:
        if not value:
            raise ValueError("a value is missing")
        _put(result, path, value)

    return parse


def _flag(*path: str) -> Callable[[Json, str], None]:
    def parse(result: Json, value: str) -> None:
        if value.lower() not in TRUE + FALSE:
            raise ValueError(f"{value!r} is neither true nor false")
        if value.lower() in TRUE:
            _put(result, path, True)

    return parse


def _pair(*path: str) -> Callable[[Json, str], None]:
    def parse(result: Json, value: str) -> None:
        name, equals, inner = value.partition("=")
        if not name:
            raise ValueError("write key=value")
        _put(result, (*path, name), inner if equals else "")

    return parse


def _size(result: Json, value: str) -> None:
    _put(result, ("TmpfsOptions", "SizeBytes"), values.size(value))


def _mode(result: Json, value: str) -> None:
    _put(result, ("TmpfsOptions", "Mode"), int(value, 8))


def _recursion(result: Json, value: str) -> None:
    if value not in RECURSION:
        raise ValueError(f"{value!r} is none of {', '.join(RECURSION)}")
    result.setdefault("BindOptions", {}).update(RECURSION[value])


def _put(result: Json, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        result = result.setdefault(name, {})
    result[path[-1]] = value


_source, _target, _read_only = _text("Source"), _text("Target"), _flag("ReadOnly")
KEYS: dict[str, Callable[[Json, str], None]] = {
    "type": _text("Type"),
    "source": _source,
    "src": _source,
    "target": _target,
    "dst": _target,
    "destination": _target,
    "readonly": _read_only,
    "ro": _read_only,
    "consistency": _text("Consistency"),
    "bind-propagation": _text("BindOptions", "Propagation"),
    "bind-nonrecursive": _flag("BindOptions", "NonRecursive"),
    "bind-recursive": _recursion,
    "bind-create-src": _flag("BindOptions", "CreateMountpoint"),
    "volume-nocopy": _flag("VolumeOptions", "NoCopy"),
    "volume-label": _pair("VolumeOptions", "Labels"),
    "volume-driver": _text("VolumeOptions", "DriverConfig", "Name"),
    "volume-opt": _pair("VolumeOptions", "DriverConfig", "Options"),
    "volume-subpath": _text("VolumeOptions", "Subpath"),
    "tmpfs-size": _size,
    "tmpfs-mode": _mode,
    "image-subpath": _text("ImageOptions", "Subpath"),
}
