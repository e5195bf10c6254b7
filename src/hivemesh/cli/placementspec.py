"""Options of `service create` and `service update` that say what tasks need of nodes, and how they spread over them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hivemesh.cli import values
from hivemesh.cli.servicespec import Decorator, Json, changed_list, decorated, option
from hivemesh.model.errors import Invalid, NotFound

PREFERENCE = {"metavar": "spread=KEY", "multiple": True}
RESOURCE = {"metavar": "NAME=COUNT", "multiple": True}
RESERVED: tuple[Decorator, ...] = (
    option("--reserve-cpu", metavar="N", help="CPUs a node must have left for a task."),
    option("--reserve-memory", metavar="SIZE", help="Memory a node must have left for a task."),
)


def create_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is new: lists as a whole."""
    spread = option(
        "--placement-pref", help="Spread evenly, as over node.labels.zone; the outermost first.", **PREFERENCE
    )
    generic = option("--generic-resource", help="So many of what nodes have, such as GPU=1.", **RESOURCE)
    return decorated(command, (*RESERVED, spread, generic))


def update_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is there: `-add` and `-rm` of each."""
    changed = (
        option("--placement-pref-add", help="Spread evenly also inside these.", **PREFERENCE),
        option("--placement-pref-rm", help="Spread no longer over these; may be repeated.", **PREFERENCE),
        option("--generic-resource-add", help="So many more of a kind; may be repeated.", **RESOURCE),
        option("--generic-resource-rm", metavar="NAME", multiple=True, help="None of a kind; may be repeated."),
    )
    return decorated(command, (*RESERVED, *changed))


def apply_created(template: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `create_options` into a task template, in place."""
    _reserve(template, given, [_resource(text) for text in given["generic_resource"]])
    preferences = [_descriptor(text) for text in given["placement_pref"]]
    template.setdefault("Placement", {})["Preferences"] = _preferences(preferences)


def apply_updated(template: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `update_options` into a task template, in place."""
    reserved = (template.get("Resources") or {}).get("Reservations") or {}
    counts = dict(_count(resource) for resource in reserved.get("GenericResources") or ())
    for text in given["generic_resource_rm"]:
        kind = text.partition("=")[0]
        if kind not in counts:
            raise NotFound(f"this service asks for no generic resource {kind}")
        del counts[kind]
    for kind, count in (_count(_resource(text)) for text in given["generic_resource_add"]):
        counts[kind] = counts.get(kind, 0) + count
    _reserve(template, given, [_discrete(kind, count) for kind, count in counts.items()])
    placement = template.setdefault("Placement", {})
    before = [(one.get("Spread") or {}).get("SpreadDescriptor", "") for one in placement.get("Preferences") or ()]
    add, remove = (map(_descriptor, given[f"placement_pref_{verb}"]) for verb in ("add", "rm"))
    placement["Preferences"] = _preferences(changed_list(before, add, remove, "placement preference"))


def _reserve(template: Json, given: Mapping[str, Any], generic: list[Json]) -> None:
    resources = template.setdefault("Resources", {})
    reserved: Json = dict(resources.get("Reservations") or {})
    if given["reserve_cpu"] is not None:
        reserved["NanoCPUs"] = values.cpus(given["reserve_cpu"])
    if given["reserve_memory"] is not None:
        reserved["MemoryBytes"] = values.size(given["reserve_memory"])
    reserved["GenericResources"] = generic
    if any(reserved.values()) or "Reservations" in resources:
        resources["Reservations"] = reserved


def _descriptor(text: str) -> str:
    strategy, equals, descriptor = text.partition("=")
    if strategy.strip().lower() != "spread" or not equals or not descriptor.strip():
        raise Invalid(f"invalid placement preference {text!r}: write spread=KEY, such as spread=node.labels.zone")
    return descriptor.strip()


def _preferences(descriptors: Iterable[str]) -> list[Json]:
    return [{"Spread": {"SpreadDescriptor": descriptor}} for descriptor in descriptors]


def _resource(text: str) -> Json:
    kind, _, count = text.partition("=")
    if not kind or not count.isascii() or not count.isdecimal():
        raise Invalid(f"invalid generic resource {text!r}: write NAME=COUNT, such as GPU=1")
    return _discrete(kind, int(count))


def _discrete(kind: str, count: int) -> Json:
    return {"DiscreteResourceSpec": {"Kind": kind, "Value": count}}


def _count(resource: Json) -> tuple[str, int]:
    asked = resource.get("DiscreteResourceSpec") or {}
    return asked.get("Kind", ""), asked.get("Value", 0)
