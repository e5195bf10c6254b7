"""Address pools and the subnets cut from them: arithmetic over values."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import combinations

from hivemesh.model.addr import Prefix
from hivemesh.model.errors import Exhausted


def overlapping(prefix: Prefix, others: Iterable[Prefix]) -> Prefix | None:
    """The first of `others` that shares addresses with `prefix`; families never meet."""
    return next((other for other in others if _meet(prefix, other)), None)


def first_overlap(prefixes: Sequence[Prefix]) -> tuple[Prefix, Prefix] | None:
    """Two of `prefixes` that share addresses."""
    return next(((a, b) for a, b in combinations(prefixes, 2) if _meet(a, b)), None)


def cut(pools: Sequence[Prefix], size: int, taken: Iterable[Prefix]) -> Prefix:
    """The lowest subnet of `size` bits that meets none of `taken`, from the first pool that has one.

    Raises `Exhausted` naming the pools. Steps from one taken prefix to the next, not over every subnet.
    """
    spans = sorted((int(prefix.network_address), int(prefix.broadcast_address), prefix.version) for prefix in taken)
    for pool in pools:
        step = 1 << (pool.max_prefixlen - size)
        start, end = int(pool.network_address), int(pool.broadcast_address)
        for first, last, version in spans:
            if version == pool.version and last >= start:
                if first >= start + step:
                    break
                start = (last // step + 1) * step
        if size >= pool.prefixlen and start + step - 1 <= end:
            return _prefix(pool.version, start, size)
    named = ", ".join(map(str, pools)) or "none"
    raise Exhausted(f"no free /{size} subnet is left in the address pools ({named})")


def without(pool: Prefix, taken: Iterable[Prefix], smallest: int) -> tuple[Prefix, ...]:
    """`pool` as the largest prefixes, of `smallest` bits at most, that meet none of `taken`; lowest first."""
    parts: list[Prefix] = [pool]
    for hole in taken:
        left: list[Prefix] = []
        for part in parts:
            if not _meet(part, hole):
                left.append(part)
            elif hole.prefixlen > part.prefixlen:
                left.extend(_exclude(part, hole))
        parts = left
    return tuple(sorted((part for part in parts if part.prefixlen <= smallest), key=lambda part: part.network_address))


def _meet(one: Prefix, other: Prefix) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def _exclude(part: Prefix, hole: Prefix) -> Iterable[Prefix]:
    if isinstance(part, IPv4Network):
        assert isinstance(hole, IPv4Network)
        return part.address_exclude(hole)
    assert isinstance(hole, IPv6Network)
    return part.address_exclude(hole)


def _prefix(version: int, start: int, size: int) -> Prefix:
    return IPv4Network((start, size)) if version == 4 else IPv6Network((start, size))
