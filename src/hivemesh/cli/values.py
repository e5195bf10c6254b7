"""What users write on the command line, as the API's JSON: durations, sizes, ports, key=value pairs."""

import re
from collections.abc import Iterable
from typing import Any

from hivemesh.model.errors import Invalid

NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
PROTOCOLS = ("tcp", "udp", "sctp")
MODES = ("ingress", "host")
MAX_PORT = 65535


def duration(text: str) -> int:
    """Nanoseconds of `10s`, `1m30s`, `500ms`; plain `0` too. Raises `Invalid`."""
    if text == "0":
        return 0
    parts = DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Invalid(f"invalid duration {text!r}: write a number with a unit, such as 10s, 1m30s or 500ms")
    return int(sum(float(number) * NANOSECONDS[unit] for number, unit in parts))


def size(text: str) -> int:
    """Bytes of `512m`, `1g`, `1048576`. Raises `Invalid`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgt]?)i?b?", text.strip().lower())
    if not found:
        raise Invalid(f"invalid size {text!r}: write bytes, or a number with a unit, such as 512m or 1g")
    return int(float(found[1]) * SIZES[found[2]])


def cpus(text: str) -> int:
    """Billionths of a CPU of `0.5`. Raises `Invalid`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100_000:
        raise Invalid(f"invalid number of CPUs {text!r}: write a number such as 0.5 or 2")
    return round(value * 1e9)


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """`key=value` and `key` (empty value), as labels are written."""
    result = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise Invalid(f"invalid label {text!r}: write key=value")
        result[key] = value
    return result


def options(texts: Iterable[str], what: str) -> dict[str, str]:
    """`key=value` only."""
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise Invalid(f"invalid {what} {text!r}: write key=value")
        result[key] = value
    return result


def ports(text: str) -> list[dict[str, Any]]:
    """A `--publish` value: `80`, `8080:80/udp`, or `published=8080,target=80,protocol=tcp,mode=host`; numbers may be
    ranges, such as `8080-8082`. Raises `Invalid`."""
    return _long_ports(text) if "=" in text else _short_ports(text)


def _short_ports(text: str) -> list[dict[str, Any]]:
    body, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise Invalid(f"invalid port {text!r}: protocol {protocol!r} is none of tcp, udp, sctp")
    published, colon, target = body.rpartition(":")
    if ":" in published:
        raise Invalid(
            f"invalid port {text!r}: a service's port is published on every node, without a host address; to publish "
            "it at some addresses only, add a label such as hivemesh.publish.8080=198.51.100.11"
        )
    return _expanded(text, _range(published, text) if colon else [], _range(target, text), protocol, "ingress")


def _expanded(text: str, published: list[int], targets: list[int], protocol: str, mode: str) -> list[dict[str, Any]]:
    """One after the other. A range may lead to a single target; nothing published means: whatever is free."""
    outer = published or [0] * len(targets)
    if len(outer) != len(targets):
        if len(targets) != 1:
            raise Invalid(f"invalid port {text!r}: the two ranges have different lengths")
        targets = targets * len(outer)
    return [
        {"Protocol": protocol, "TargetPort": target, "PublishedPort": number, "PublishMode": mode}
        for number, target in zip(outer, targets, strict=True)
    ]


def _range(text: str, whole: str) -> list[int]:
    first, dash, last = text.partition("-")
    low = _port(first, whole)
    high = _port(last, whole) if dash else low
    if high < low:
        raise Invalid(f"invalid port {whole!r}: the range {text} ends before it begins")
    return list(range(low, high + 1))


def _port(text: str, whole: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= MAX_PORT:
        raise Invalid(f"invalid port {whole!r}: {text!r} is no number from 1 to {MAX_PORT}")
    return int(text)


def _long_ports(text: str) -> list[dict[str, Any]]:
    targets: list[int] = []
    published: list[int] = []
    protocol, mode = "tcp", "ingress"
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        if not equals:
            raise Invalid(f"invalid port {text!r}: {part!r} is not key=value")
        match key:
            case "target":
                targets = _range(value, text)
            case "published":
                published = _range(value, text)
            case "protocol" if value.lower() in PROTOCOLS:
                protocol = value.lower()
            case "mode" if value.lower() in MODES:
                mode = value.lower()
            case "protocol" | "mode":
                raise Invalid(f"invalid port {text!r}: {key} {value!r} is none of {', '.join(_choices(key))}")
            case _:
                raise Invalid(f"invalid port {text!r}: unknown key {key!r}; use target, published, protocol, mode")
    if not targets:
        raise Invalid(f"invalid port {text!r}: target is missing")
    return _expanded(text, published, targets, protocol, mode)


def _choices(key: str) -> tuple[str, ...]:
    return PROTOCOLS if key == "protocol" else MODES


def network(text: str) -> dict[str, Any]:
    """`backend`, or `name=backend,alias=db,ip=10.0.9.5,driver-opt=key=value`."""
    if "=" not in text:
        return {"Target": text}
    result: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        match key.strip().lower():
            case "name":
                result["Target"] = value
            case "alias":
                result.setdefault("Aliases", []).append(value)
            case "ip" | "ip6":
                result.setdefault("DriverOpts", {})[key.strip().lower()] = value
            case "driver-opt":
                result.setdefault("DriverOpts", {}).update(options([value], "driver option"))
            case _:
                raise Invalid(f"invalid network {text!r}: unknown key {key!r}; use name, alias, ip, ip6 and driver-opt")
    if not result.get("Target"):
        raise Invalid(f"invalid network {text!r}: name is missing")
    return result
