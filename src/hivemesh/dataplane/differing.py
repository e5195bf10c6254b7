"""What a namespace holds against its plan, read from the kernel whatever we remember: difference by difference, each
with the object it is about."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hivemesh.dataplane.balancer.sockets import own_address
from hivemesh.dataplane.belief import unwanted_tables, words
from hivemesh.dataplane.entries import KINDS
from hivemesh.dataplane.links import compare, left_over, loopback
from hivemesh.dataplane.plumbing import Plumber
from hivemesh.kernel.api import (
    HOST,
    FdbEntry,
    Link,
    LinkAddress,
    NamespacePlan,
    Neighbor,
    Route,
    Rule,
)
from hivemesh.kernel.linux import Linux
from hivemesh.wire.nft import Table

Subject = Link | LinkAddress | Neighbor | FdbEntry | Route | Rule | Table | str
"""What a plan holds; a setting by its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Between a namespace and its plan, in words. `subject` is the object that is not as it should be, if it is one of
    the plan's; of what is `extra`, the one that should not be there."""

    namespace: str
    text: str
    subject: Subject | None = field(default=None, compare=False)
    extra: bool = False
    loses: bool = False
    """It is too much or leads elsewhere: `ensure` would not only add to it."""

    def __str__(self) -> str:
        return f"{self.namespace or 'host'}: {self.text}"


def compared(linux: Linux, plan: NamespacePlan) -> Iterator[Difference]:
    """What the kernel lacks or has too much, in an order in which causes come before what hangs on them."""
    where = plan.namespace

    def lacks(text: str, subject: Subject | None = None) -> Difference:
        return Difference(namespace=where, text=text, subject=subject)

    def too_much(text: str, subject: Subject | None = None) -> Difference:
        return Difference(namespace=where, text=text, subject=subject, extra=True, loses=True)

    if not linux.exists(where):
        yield lacks("the namespace is missing")
        return
    if where and (mark := linux.mark_of(where)) != plan.mark:
        yield lacks(f"the namespace is marked {mark!r} instead of {plan.mark!r}")
        return
    door = linux.door(where)
    seen = door.links()
    yield from (lacks(step.text) for step in loopback(plan, seen))
    yield from (too_much(step.text) for step in left_over(plan, seen))
    yield from (lacks(step.text, step.link) for step in compare(plan, plan.links, seen, Plumber(linux).outer()))
    indices = {name: link.index for name, link in seen.items()}
    for kind in KINDS:
        reading = kind.read(door, plan, indices)
        wanted = kind.wanted(plan)
        yield from (lacks(f"{kind.name} is missing: {words(value)}", value) for value in wanted - reading.values)
        yield from (too_much(f"{kind.name} is too much: {words(value)}", value) for value in reading.values - wanted)
        yield from (too_much(f"{kind.name} is too much: {message.subject}") for message in reading.odd)
    for key, value in linux.differing_settings(where, plan.sysctls).items():
        yield lacks(f"{key} is {value} instead of {plan.sysctls[key]}", key)
    tables = linux.tables(where)
    for table in plan.tables:
        if texts := linux.table_differences(where, table):
            loses = linux.table_loses(where, table)
            yield from (Difference(namespace=where, text=text, subject=table, loses=loses) for text in texts)
    for family, name in unwanted_tables(plan, tables):
        yield too_much(f"nft {family} {name} is too much")
    if where != HOST:
        led = linux.ipvs_differences(where, plan.ipvs)
        led += linux.socket_differences(where, plan.sockets, own_address(plan))
        yield from (Difference(namespace=where, text=text, loses="is missing" not in text) for text in led)
