"""Generic resources: what a node has several of and tasks take for themselves, such as GPUs and licences.

*Discrete* ones are only counted (`SSD=3`), *named* ones are told apart (`GPU=uuid1`, `GPU=uuid2`). A task asks for a
number of either, and learns which it got from its environment. The words and shapes are Docker's.
"""

import re
from collections.abc import Iterable

import msgspec

from hivemesh.model.errors import Invalid

_WORD = re.compile(r"[^\s,=\x00-\x1f\x7f]+")
"""No comma: a container finds the names it got in one variable, separated by commas."""
_NUMBER = re.compile(r"-?[0-9]+", re.ASCII)
MAX_COUNT = 2**63 - 1
"""Docker's clients keep counts in 64 bits."""
ENVIRONMENT = "DOCKER_RESOURCE_"


class DiscreteResource(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """So many of a kind."""

    kind: str = ""
    value: int = 0


class NamedResource(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One of a kind, by its name."""

    kind: str = ""
    value: str = ""


class GenericResource(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """Exactly one is set."""

    discrete_resource_spec: DiscreteResource | None = None
    named_resource_spec: NamedResource | None = None


def discrete(kind: str, count: int) -> GenericResource:
    return GenericResource(discrete_resource_spec=DiscreteResource(kind=kind, value=count))


def named(kind: str, name: str) -> GenericResource:
    return GenericResource(named_resource_spec=NamedResource(kind=kind, value=name))


def parse(texts: Iterable[str]) -> tuple[GenericResource, ...]:
    """What a node has, of `SSD=3`, `GPU=uuid1`, `GPU=uuid2`: numbers count, anything else is a name.

    Raises `Invalid` for a kind that is both, or counted twice, and for a name given twice.
    """
    kinds: dict[str, list[str]] = {}
    for text in texts:
        kind, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not _WORD.fullmatch(kind) or not _WORD.fullmatch(value):
            raise Invalid(
                f"invalid generic resource {text!r}: write NAME=COUNT or NAME=VALUE, such as SSD=3 or GPU=id1"
            )
        kinds.setdefault(kind, []).append(value)
    found: list[GenericResource] = []
    for kind, values in kinds.items():
        counts = [value for value in values if _NUMBER.fullmatch(value)]
        if not counts:
            if len(set(values)) < len(values):
                raise Invalid(f"invalid generic resource {kind}: a name is given twice")
            found.extend(named(kind, value) for value in values)
        elif len(values) > 1:
            raise Invalid(f"invalid generic resource {kind}: give one count, or names only")
        elif not 0 <= int(counts[0]) <= MAX_COUNT:
            raise Invalid(f"invalid generic resource {kind}={counts[0]}: the count is out of range")
        else:
            found.append(discrete(kind, int(counts[0])))
    return tuple(found)


def unparse(resources: Iterable[GenericResource]) -> tuple[str, ...]:
    """The texts that `parse` makes these of."""
    each = (resource.discrete_resource_spec or resource.named_resource_spec for resource in resources)
    return tuple(f"{one.kind}={one.value}" for one in each if one is not None)


def environment(resources: Iterable[GenericResource]) -> tuple[str, ...]:
    """What a container is told of those it got: `DOCKER_RESOURCE_GPU=uuid1,uuid2`, `DOCKER_RESOURCE_SSD=3`."""
    values: dict[str, list[str]] = {}
    for resource in resources:
        spec = resource.discrete_resource_spec or resource.named_resource_spec
        if spec is not None:
            values.setdefault(spec.kind.upper(), []).append(str(spec.value))
    return tuple(f"{ENVIRONMENT}{kind}={','.join(found)}" for kind, found in sorted(values.items()))
