"""What we know of one namespace between two passes, and what one pass finds."""

import threading
from dataclasses import dataclass, field
from typing import Any

from hivemesh.dataplane.entries import KINDS, Indices
from hivemesh.dataplane.ownership import is_our_table
from hivemesh.dataplane.suspicion import EVERYTHING
from hivemesh.kernel.api import NamespacePlan, Veth
from hivemesh.reconcile.delta import Delta


@dataclass(slots=True)
class Held:
    """What we know of one namespace."""

    namespace: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    plan: NamespacePlan | None = None  # the last one we applied
    coming: NamespacePlan | None = None  # the one being applied
    doubtful: set[str] = field(default_factory=lambda: set(EVERYTHING))
    failing: set[str] = field(default_factory=set)  # kinds with a failure last time: their repair is no drift
    indices: Indices = field(default_factory=dict)
    deltas: dict[str, Delta[Any]] = field(default_factory=dict)
    identity: tuple[int, int] = (-1, -1)

    def __post_init__(self) -> None:
        self.deltas = {kind.name: kind.delta(self.namespace) for kind in KINDS}

    def doubt(self, kinds: frozenset[str] = EVERYTHING) -> None:
        self.doubtful |= kinds


@dataclass(slots=True)
class Tally:
    """One `ensure` as it goes."""

    changed: int = 0
    failed: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    repaired: list[str] = field(default_factory=list)

    def fail(self, kind: str, text: str) -> None:
        self.failed.append(text)
        self.failing.add(kind)


def plugs_into(held: Held, namespace: str) -> bool:
    plan = held.plan
    return plan is not None and any(isinstance(x, Veth) and x.outer.namespace == namespace for x in plan.links)


def on_link(value: object, indices: Indices) -> bool:
    link = getattr(value, "link", None)
    return link is None or link in indices


def words(value: object) -> str:
    """A value as `name=value` pairs, without its class."""
    pairs = [(name, getattr(value, name)) for name in getattr(value, "__slots__", ())]
    return " ".join(f"{name}={part}" for name, part in pairs if part is not None)


def settings_by_time(plan: NamespacePlan) -> tuple[dict[str, str], dict[str, str]]:
    """Those of links must wait for the links; of the others, forwarding goes first: it sets others to its defaults."""
    links = {link.name for link in plan.links}
    late = {key: value for key, value in plan.sysctls.items() if links & set(key.split("/"))}
    early = {key: value for key, value in plan.sysctls.items() if key not in late}
    forwarding = [key for key in early if key.endswith(("/ip_forward", "/forwarding"))]
    return {key: early[key] for key in (*forwarding, *(k for k in early if k not in forwarding))}, late


def unwanted_tables(plan: NamespacePlan, tables: set[tuple[str, str]]) -> list[tuple[str, str]]:
    wanted = {(table.family, table.name) for table in plan.tables}
    return sorted(key for key in tables if is_our_table(key[1]) and key not in wanted)
