"""Make the kernel agree with a plan, one namespace at a time, and remember how far that got.

What fights us here:
- The first look at a namespace reads everything; a network of 10,000 peers must not be read again for each that comes.
  So belief is kept per kind of object, and dropped for that kind only by a failure, by `forget` (somebody else touched
  the namespace) or by a link that was made anew.
- One object the kernel refuses must not hold up the rest: it is named in the outcome, and tried again next time.
- A veth has two ends in two namespaces and belongs to the plan of its near end. When a bridge is made anew, the plans
  whose far ends were its ports are doubtful: see `affected`.
- A namespace may lose its name (`ip netns delete`) and live on: it is pinned again, with all that is inside.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hivemesh.dataplane.balancer.sockets import own_address
from hivemesh.dataplane.belief import Held, Tally, on_link, plugs_into, settings_by_time, unwanted_tables, words
from hivemesh.dataplane.differing import Difference, compared
from hivemesh.dataplane.entries import FDB, GONE, KINDS, NEIGHBOR, Kind
from hivemesh.dataplane.links import Outer, Step, compare, left_over, loopback
from hivemesh.dataplane.ownership import is_left_over, is_our_link, is_our_namespace
from hivemesh.dataplane.plumbing import Plumber
from hivemesh.dataplane.suspicion import EVERYTHING, IPVS, LINK, SOCKETS, SYSCTL, WantedKeys, contradicts, stranger
from hivemesh.kernel.api import HOST, Bridge, Link, NamespacePlan, Veth, Vxlan
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.monitor import NFT, Change
from hivemesh.kernel.rtnl import Rtnl
from hivemesh.model.errors import Conflict
from hivemesh.wire.netlink import Message
from hivemesh.wire.rtnetlink import LinkSeen, delete_link


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one `ensure` did."""

    created: bool
    changed: int
    """Kernel objects touched."""
    failed: tuple[str, ...]
    repaired: tuple[str, ...] = ()
    """Of what changed, in words: what we had put right before and somebody else undid."""


class Applier:
    """The kernel objects of this node, namespace by namespace. Methods block; safe to call from several threads."""

    def __init__(self, linux: Linux | None = None) -> None:
        self._linux = linux or Linux()
        self._plumber = Plumber(self._linux)
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()

    # --- the verbs

    def ensure(self, plan: NamespacePlan) -> Outcome:
        """Make the namespace hold what the plan says and nothing else of ours; already right: nothing happens.

        Raises `Conflict` when a namespace of that name exists and is not ours, `OSError` when nothing can be done.
        """
        held = self._of(plan.namespace)
        with held.lock:
            tally = Tally()
            created = self._namespace(held, plan, tally)
            if held.plan != plan or held.doubtful:
                self._apply(held, plan, tally, fresh=created)
            return Outcome(
                created=created, changed=tally.changed, failed=tuple(tally.failed), repaired=tuple(tally.repaired)
            )

    def remove(self, namespace: str, *, unplug: bool = False) -> None:
        """Remove the namespace, and at once its VXLAN device, whose VNI may be wanted again. Already gone: fine.

        `unplug`: its veths at once, too; else they go with the last process inside, which answers until then at
        addresses that may be somebody else's. Of the host, remove everything of ours. Raises `Conflict` when the
        namespace is not ours.
        """
        if namespace == HOST:
            self.ensure(NamespacePlan(namespace=HOST, mark=""))
            # ports whose sandboxes were removed a moment ago are still on their way out
            door = self._linux.door(HOST)
            door.apply([delete_link(x.index, x.name) for x in door.links().values() if is_our_link(HOST, x)])
            return
        held = self._of(namespace)
        with held.lock:
            self._linux.forget_sockets(namespace)
            # one that lost its name and is held open by us goes as well
            if self._linux.exists(namespace) or self._linux.pin_again(namespace):
                self._check_mark(namespace)
                door = self._linux.door(namespace)
                # the rest goes with the namespace some time later; removing it here costs 10 ms each
                kinds = ("vxlan", "veth") if unplug else ("vxlan",)
                door.apply([delete_link(x.index, x.name) for x in door.links().values() if x.kind in kinds])
            self._linux.delete(namespace)
        with self._lock:
            self._held.pop(namespace, None)
        self._doubt_ports_in(namespace)

    def forget(self, namespace: str, kinds: frozenset[str] = EVERYTHING) -> None:
        """Somebody else touched the namespace: read those kinds again before the next change, for all of `affected`."""
        with self._lock:
            held = self._held.get(namespace)
        if held is not None:
            held.doubt(kinds)
        if LINK in kinds:
            self._doubt_ports_in(namespace)

    def affected(self, namespace: str) -> tuple[str, ...]:
        """The namespaces whose plans have objects in `namespace`: itself, and those with a veth's far end there."""
        with self._lock:
            others = [h.namespace for h in self._held.values() if h.namespace != namespace and plugs_into(h, namespace)]
        return (namespace, *sorted(others))

    def contradicted(self, changes: Sequence[Change]) -> set[str]:
        """The namespaces whose plans somebody else's `changes` contradict; what is contradicted will be read again.

        The host is among them, without doubts, when its own links and addresses change.
        """
        suspects: set[str] = set()
        links: set[tuple[str, str]] = set()
        keys = WantedKeys()
        for change in changes:
            held = self._held.get(change.namespace)
            plan = held.plan if held is not None else None
            if held is None or plan is None:
                continue
            if stranger(plan, held.indices, change):
                suspects.add(HOST)
                continue
            if isinstance(change.value, LinkSeen):
                links.add((change.namespace, change.value.name))
            kinds = contradicts(plan, held.indices, change, keys)
            # an `ensure` may be under way, or have ended since: its plan comes first into `coming`, then into `plan`
            later = held.coming or held.plan
            if kinds is not None and later is not None and later is not plan:
                kinds = contradicts(later, held.indices, change, keys)
            if kinds is not None:
                held.doubt(kinds)
                suspects.add(change.namespace)
        for namespace, name in links:
            try:
                suspects |= self._suspect_link(namespace, name)
            except FileNotFoundError:  # removed while we looked
                suspects.add(namespace)
        return suspects

    def _suspect_link(self, namespace: str, name: str) -> set[str]:
        """A link is on its way from one state to another in several events: what counts is how it is now.

        Under the lock: a door opened while the namespace is being removed would keep it alive.
        """
        owner = self._owner(namespace, name)
        held = owner[0] if owner is not None else self._held.get(namespace)
        if held is None:
            return set()
        with held.lock:
            if held.plan is None or not self._linux.exists(held.namespace):
                return set() if owner is None else {held.namespace}
            door = self._linux.door(held.namespace)
            if owner is None:
                link = door.link(name)
                if link is None:
                    return set()
                if not is_left_over(held.plan, link) and not list(loopback(held.plan, {name: link})):
                    return set()
                held.doubt(frozenset({LINK}))
                return {namespace}
            wanted = owner[1]
            names = {wanted.name, wanted.master} if isinstance(wanted, Vxlan) else {wanted.name}
            seen = {name: link for name in names if (link := door.link(name)) is not None}
            if list(compare(held.plan, [wanted], seen, self._plumber.outer())):
                held.doubt(frozenset({LINK}))
                return {held.namespace}
            if seen[wanted.name].index != held.indices.get(wanted.name):
                held.doubt()
                return {held.namespace}
            return set()

    def _owner(self, namespace: str, name: str) -> tuple[Held, Link] | None:
        """Whose plan a link belongs to, as its near or its far end."""
        with self._lock:
            for held in self._held.values():
                for link in held.plan.links if held.plan is not None else ():
                    near = held.namespace == namespace and link.name == name
                    if near or (
                        isinstance(link, Veth) and (link.outer.namespace, link.outer.name) == (namespace, name)
                    ):
                        return held, link
        return None

    def differences(self, plan: NamespacePlan) -> list[Difference]:
        """What the kernel lacks or has too much, read from it whatever we remember; [] means equal."""
        return list(compared(self._linux, plan))

    def losses(self, plan: NamespacePlan) -> list[Difference]:
        """Those of the differences that lose something. Links and settings are none: no view is without them."""
        return [difference for difference in compared(self._linux, plan) if difference.loses]

    # --- namespaces

    def _of(self, namespace: str) -> Held:
        with self._lock:
            return self._held.setdefault(namespace, Held(namespace))

    def _check_mark(self, namespace: str) -> str:
        mark = self._linux.mark_of(namespace)
        if not is_our_namespace(mark):
            raise Conflict(f"namespace {namespace} exists and is not ours: `ip netns delete {namespace}` removes it")
        return mark

    def _namespace(self, held: Held, plan: NamespacePlan, tally: Tally) -> bool:
        """See that it exists and is ours. True if it had to be made."""
        if plan.namespace == HOST:
            return False
        created = False
        if not self._linux.exists(plan.namespace):
            if self._linux.pin_again(plan.namespace):
                tally.changed += 1
                tally.repaired.append("the namespace had lost its name")
            else:
                self._linux.create(plan.namespace, plan.mark)
                created = True
        identity = self._linux.identity(plan.namespace)
        if identity != held.identity:
            # before any door is opened: that would keep alive what may not be ours
            mark = self._check_mark(plan.namespace)
            if mark != plan.mark:
                raise Conflict(f"namespace {plan.namespace} belongs to {mark}, not to {plan.mark}")
            held.identity = identity
            held.doubt()
            if created:
                held.plan = None
                self._doubt_ports_in(plan.namespace)
        return created

    def _doubt_ports_in(self, namespace: str) -> None:
        with self._lock:
            for held in self._held.values():
                if held.namespace != namespace and plugs_into(held, namespace):
                    held.doubtful.add(LINK)

    # --- one pass

    def _apply(self, held: Held, plan: NamespacePlan, tally: Tally, *, fresh: bool) -> None:
        # what is doubted while we are at it stays doubtful
        doubtful, held.doubtful = held.doubtful, set()
        held.coming = plan
        try:
            if fresh:  # nothing is in it yet: save the look
                doubtful = {LINK, SYSCTL, NFT, IPVS, SOCKETS}
                for delta in held.deltas.values():
                    delta.believe(())
            door = self._linux.door(plan.namespace)
            # before the settings, which come with the module
            first = IPVS in doubtful or held.plan is None or not held.plan.ipvs
            lack = self._linux.ipvs_missing() if plan.ipvs and first else ""
            early, late = settings_by_time(plan)
            self._settings(held, plan, early, doubtful, tally)
            if LINK in doubtful or held.plan is None or held.plan.links != plan.links:
                if self._links(held, plan, door, tally) and not fresh:
                    doubtful |= EVERYTHING - {LINK}
                links = door.links()
                held.indices = {name: link.index for name, link in links.items()}
            self._settings(held, plan, late, doubtful, tally)
            self._entries(held, plan, door, doubtful, tally)
            if lack:
                tally.fail(IPVS, lack)
            else:
                self._ipvs(held, plan, doubtful, tally)
            self._tables(held, plan, doubtful, tally)
            self._sockets(held, plan, doubtful, tally)
        except BaseException:
            held.doubt()
            held.coming = None
            raise
        held.plan, held.coming = plan, None
        held.failing = tally.failing
        held.doubtful |= tally.failing

    def _settings(
        self, held: Held, plan: NamespacePlan, keys: Mapping[str, str], doubtful: set[str], tally: Tally
    ) -> None:
        before = held.plan.sysctls if held.plan is not None else {}
        if SYSCTL not in doubtful:
            keys = {key: value for key, value in keys.items() if before.get(key) != value}
        differing, failed = self._linux.ensure_settings(plan.namespace, keys)
        for key, error in failed.items():
            tally.fail(SYSCTL, f"set {key} to {keys[key]}: {error.strerror}")
        for key, value in differing.items():
            if key in failed:
                continue
            tally.changed += 1
            if before.get(key) == keys[key] and SYSCTL not in held.failing:
                tally.repaired.append(f"{key} was {value} instead of {keys[key]}")

    # --- links

    def _links(self, held: Held, plan: NamespacePlan, door: Rtnl, tally: Tally) -> bool:
        """True if links were made, removed or brought up: what hangs on them may be gone."""
        outer = self._plumber.outer()
        seen = door.links()
        steps = [*loopback(plan, seen), *left_over(plan, seen)]
        bridges = [link for link in plan.links if isinstance(link, Bridge)]
        steps += compare(plan, bridges, seen, outer)
        for step in steps:
            self._step(held, plan, door, step, outer, tally)
        if steps:
            seen = door.links()
        others = list(compare(plan, [link for link in plan.links if link not in bridges], seen, outer))
        for step in others:
            self._step(held, plan, door, step, outer, tally)
        if any(step.create and isinstance(step.link, Bridge) for step in steps):
            self._doubt_ports_in(plan.namespace)
        return bool(steps or others)

    def _step(self, held: Held, plan: NamespacePlan, door: Rtnl, step: Step, outer: Outer, tally: Tally) -> None:
        if step.refused:
            tally.fail(LINK, step.text)
            return
        failures = self._plumber.take(step, door, outer)
        for failure in failures:
            tally.fail(LINK, failure)
        if not failures:
            tally.changed += 1
            before = held.plan.links if held.plan is not None else ()
            known = step.link in before if step.link is not None else all(x.name != step.name for x in before)
            if step.name == "lo" and step.inside and held.plan is not None:
                known = held.plan.mark == plan.mark
            if held.plan is not None and known and LINK not in held.failing:
                tally.repaired.append(step.text)

    # --- what hangs on links

    def _entries(self, held: Held, plan: NamespacePlan, door: Rtnl, doubtful: set[str], tally: Tally) -> None:
        messages: list[Message] = []
        owners: dict[int, tuple[Kind[Any], Any]] = {}  # by the message's id: its kind, and its value if it is wanted
        puts: list[Message] = []
        behind: list[Message] = []
        drift: dict[int, str] = {}
        for kind in KINDS:
            delta = held.deltas[kind.name]
            wanted = kind.wanted(plan)
            before = kind.wanted(held.plan) if held.plan is not None else None
            was_read = kind.name in doubtful or delta.needs_readback
            removals: list[tuple[Message, Any]] = []
            if was_read:
                reading = kind.read(door, plan, held.indices)
                delta.believe(reading.values)
                removals += [(message, None) for message in reading.odd]
            change = delta.change(wanted)
            removals += [
                (kind.remove(held.indices, value), value) for value in change.remove if on_link(value, held.indices)
            ]
            if kind is KINDS[0] and removals:
                # removing an IPv4 address takes others of its subnet and routes with it: look again
                for message, value in self._send_entries(removals, kind, door, tally):
                    if was_read and before is not None and value not in before and kind.name not in held.failing:
                        tally.repaired.append(f"{kind.name} was too much: {message.subject}")
                doubtful |= EVERYTHING - {NEIGHBOR.name, FDB.name}
                delta.believe(kind.read(door, plan, held.indices).values)
                change, removals = delta.change(wanted), []
            for message, value in removals:
                owners[id(message)] = (kind, value)
                messages.append(message)
                if kind.after is not None and value is not None:
                    behind.append(kind.after(held.indices, value))
                    owners[id(behind[-1])] = (kind, None)
                if was_read and before is not None and value not in before and kind.name not in held.failing:
                    drift[id(message)] = f"{kind.name} was too much: {message.subject}"
            for value in change.put:
                if not on_link(value, held.indices):
                    tally.fail(kind.name, f"{kind.name} {words(value)}: there is no such link")
                    continue
                message = kind.put(plan, held.indices, value)
                owners[id(message)] = (kind, value)
                puts.append(message)
                if was_read and before is not None and value in before and kind.name not in held.failing:
                    drift[id(message)] = f"{kind.name} was missing: {message.subject}"
            delta.believe(wanted)
        messages += puts
        refused = set()
        for failure in door.apply([*messages, *behind]) if messages else ():
            kind, _ = owners[id(failure.message)]
            if failure.message.verb.startswith("delete_") and failure.errno in GONE:
                continue
            refused.add(id(failure.message))
            tally.fail(kind.name, str(failure))
        for name in tally.failing & held.deltas.keys():
            held.deltas[name].forget()
        tally.changed += len(messages) - len(refused)
        tally.repaired += [text for key, text in drift.items() if key not in refused]

    def _send_entries(
        self, removals: list[tuple[Message, Any]], kind: Kind[Any], door: Rtnl, tally: Tally
    ) -> list[tuple[Message, Any]]:
        """Returns what was removed."""
        failures = [f for f in door.apply([message for message, _ in removals]) if f.errno not in GONE]
        for failure in failures:
            tally.fail(kind.name, str(failure))
        refused = {id(failure.message) for failure in failures}
        tally.changed += len(removals) - len(refused)
        return [removal for removal in removals if id(removal[0]) not in refused]

    # --- IPVS

    def _ipvs(self, held: Held, plan: NamespacePlan, doubtful: set[str], tally: Tally) -> None:
        """Before the tables, whose marks lead there. In the host IPVS is other people's: Kubernetes', say."""
        before = held.plan.ipvs if held.plan is not None else ()
        if plan.namespace == HOST or (IPVS not in doubtful and before == plan.ipvs):
            return
        try:
            done = self._linux.ensure_ipvs(plan.namespace, plan.ipvs, None if IPVS in doubtful else before)
        except OSError as error:
            if plan.ipvs:
                tally.fail(IPVS, error.strerror or str(error))
            return
        tally.changed += len(done.changed)
        for text in done.failed:
            tally.fail(IPVS, text)
        if before == plan.ipvs and held.plan is not None and IPVS not in held.failing:
            tally.repaired += done.changed

    # --- nftables

    def _tables(self, held: Held, plan: NamespacePlan, doubtful: set[str], tally: Tally) -> None:
        before = held.plan.tables if held.plan is not None else ()
        looking = NFT in doubtful
        if not looking and before == plan.tables:
            return
        undoing = looking and NFT not in held.failing
        for table in plan.tables:
            if not looking and table in before:
                continue
            try:
                changed = self._linux.ensure_table(plan.namespace, table)
            except OSError as error:
                tally.fail(NFT, f"table {table.family} {table.name}: {error}")
                continue
            tally.changed += changed
            if changed and undoing and table in before:
                tally.repaired.append(f"nft {table.family} {table.name}: {changed} changes")
        if not looking and {(t.family, t.name) for t in before} <= {(t.family, t.name) for t in plan.tables}:
            return
        try:
            for family, name in unwanted_tables(plan, self._linux.tables(plan.namespace)):
                self._linux.delete_table(plan.namespace, family, name)
                tally.changed += 1
                if undoing and held.plan is not None and all((t.family, t.name) != (family, name) for t in before):
                    tally.repaired.append(f"nft {family} {name} was too much")
        except OSError as error:
            tally.fail(NFT, f"remove tables of ours: {error}")

    # --- sockets

    def _sockets(self, held: Held, plan: NamespacePlan, doubtful: set[str], tally: Tally) -> None:
        """After the tables, which answer for what is not led away. The maps are ours alone: nobody's drift."""
        before = (held.plan.sockets, held.plan.addresses, held.plan.routes) if held.plan is not None else None
        now = (plan.sockets, plan.addresses, plan.routes)
        if plan.namespace == HOST or (SOCKETS not in doubtful and before == now):
            return
        try:
            tally.changed += self._linux.ensure_sockets(plan.namespace, plan.sockets, own_address(plan))
        except OSError as error:
            tally.fail(SOCKETS, f"balance sockets: {error.strerror or error}")
