"""Typed tables over a store: one per kind of object, kept in memory, written in optimistic transactions."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from hivemesh.meters import SLOW, Durations
from hivemesh.model.cluster import Cluster
from hivemesh.model.cursor import Cursor
from hivemesh.model.errors import Conflict, Unavailable
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.secret import Config, Credential, Secret
from hivemesh.model.service import Service
from hivemesh.model.task import Task
from hivemesh.store.api import Compacted, Delete, Event, Expect, Mismatch, Put, Silent, Snapshot, Store
from hivemesh.wire import codec

log = logging.getLogger("hivemesh.store")

T = TypeVar("T", Cluster, Node, Network, Service, Task, Secret, Config, Credential, Cursor)
R = TypeVar("R")
AnyObject = Cluster | Node | Network | Service | Task | Secret | Config | Credential | Cursor
V = TypeVar("V", bound=AnyObject)

PREFIX: dict[type[Any], str] = {
    Cluster: "cluster/",
    Node: "node/",
    Network: "network/",
    Service: "service/",
    Task: "task/",
    Secret: "secret/",
    Config: "config/",
    Credential: "credential/",
    Cursor: "cursor/",
}
KIND = {prefix: kind for kind, prefix in PREFIX.items()}
ATTEMPTS = 50
"""How often a transaction is tried again after another manager was faster."""
NEWS = 1.0
"""Seconds for a commit to come by the watch, which may be deaf; then everything is read."""


class View:
    """What the store holds, read-only. Consistent between two awaits."""

    def __init__(self) -> None:
        self.revision = 0
        self._objects: dict[type[Any], dict[str, Any]] = {kind: {} for kind in PREFIX}
        self._by_service: dict[str, dict[str, Task]] = {}
        self._by_node: dict[str, dict[str, Task]] = {}

    def get(self, kind: type[T], identifier: str) -> T | None:
        """The object, or None."""
        found: T | None = self._objects[kind].get(identifier)
        return found

    def all(self, kind: type[T]) -> Collection[T]:
        """All objects of a kind, in no particular order."""
        return self._objects[kind].values()

    @property
    def cluster(self) -> Cluster:
        """The one cluster object."""
        return next(iter(self.all(Cluster)))

    def tasks_of(self, service: str) -> list[Task]:
        """The tasks of a service, dead ones included."""
        return list(self._by_service.get(service, {}).values())

    def tasks_on(self, node: str) -> list[Task]:
        """The tasks assigned to a node, dead ones included."""
        return list(self._by_node.get(node, {}).values())

    def adopt(self, transaction: "Transaction", revision: int) -> None:
        """Take over what a transaction on this very view staged, now that it is committed as `revision`."""
        for kind, identifier, _, value in list(transaction.staged()):
            if value is None:
                self._unset(kind, identifier)
            else:
                self._set(msgspec.structs.replace(value, version=revision))
        self.revision = revision

    def _set(self, value: Any) -> None:
        self._unset(type(value), value.id)
        self._objects[type(value)][value.id] = value
        if isinstance(value, Task):
            self._by_service.setdefault(value.service_id, {})[value.id] = value
            if value.node_id:
                self._by_node.setdefault(value.node_id, {})[value.id] = value

    def _unset(self, kind: type[Any], identifier: str) -> None:
        before = self._objects[kind].pop(identifier, None)
        if isinstance(before, Task):
            for index, key in ((self._by_service, before.service_id), (self._by_node, before.node_id)):
                if key:
                    index[key].pop(identifier, None)
                    if not index[key]:
                        del index[key]


class Transaction(View):
    """A view with changes staged on top: reads see them, nobody else does until commit.

    Making one costs nothing: reads fall through to the view below. That view must not change before `changes` was
    called, so a transaction is never held across an await.
    """

    def __init__(self, base: View) -> None:
        self.revision = base.revision
        self.edits = 0  # grows with each change that is one
        self._base = base
        self._staged: dict[type[Any], dict[str, Any]] = {kind: {} for kind in PREFIX}

    def get(self, kind: type[T], identifier: str) -> T | None:
        staged = self._staged[kind]
        found: T | None = staged[identifier] if identifier in staged else self._base.get(kind, identifier)
        return found

    def all(self, kind: type[T]) -> Collection[T]:
        staged = self._staged[kind]
        if not staged:
            return self._base.all(kind)
        kept = [value for value in self._base.all(kind) if value.id not in staged]
        return kept + [value for value in staged.values() if value is not None]

    def tasks_of(self, service: str) -> list[Task]:
        return self._merged(self._base.tasks_of(service), lambda task: task.service_id == service)

    def tasks_on(self, node: str) -> list[Task]:
        return self._merged(self._base.tasks_on(node), lambda task: task.node_id == node)

    def _merged(self, found: list[Task], belongs: Callable[[Task], bool]) -> list[Task]:
        staged = self._staged[Task]
        if not staged:
            return found
        kept = [task for task in found if task.id not in staged]
        return kept + [task for task in staged.values() if task is not None and belongs(task)]

    def put(self, value: V) -> V:
        """Create or replace; putting what is there already changes nothing."""
        kind: type[Any] = type(value)
        before = self.get(kind, value.id)
        if before is not value and before != value:
            self._staged[kind][value.id] = value
            self.edits += 1
        return value

    def delete(self, value: AnyObject) -> None:
        """Remove; removing what is not there is fine."""
        kind: type[Any] = type(value)
        if self.get(kind, value.id) is not None:
            self._staged[kind][value.id] = None
            self.edits += 1

    def staged(self) -> Iterator[tuple[type[Any], str, AnyObject | None, AnyObject | None]]:
        """What differs from the view below: kind, id, value before and after (None: not there)."""
        for kind, values in self._staged.items():
            for identifier, value in values.items():
                before = self._base.get(kind, identifier)
                if before is not value and before != value:
                    yield kind, identifier, before, value

    def changes(self) -> tuple[list[Put | Delete], list[Expect]]:
        """What to commit, and the versions it was computed from."""
        puts: list[Put | Delete] = []
        expect: list[Expect] = []
        for kind, identifier, before, value in self.staged():
            key = PREFIX[kind] + identifier
            expect.append(Expect(key, before.version if before else 0))
            puts.append(Put(key, codec.pack(value)) if value is not None else Delete(key))
        return puts, expect


class Tables:
    """The cluster's state in memory, following the store.

    Updates through one `Tables` run one after the other, and a commit counts only if no other manager committed
    anything since: what a change read (a name that is free, an address nobody holds) still holds when it is
    committed. Its own commits enter the view at once; those of others arrive by the watch in `run`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.view = View()
        self.writes, self.reads = Durations(SLOW), Durations(SLOW)
        """How long the store takes for a commit, and for all there is."""
        self._writing = asyncio.Lock()
        self._silence: tuple[float, Silent] | None = None  # when the store did not answer last, and what was said
        self._waiting: set[asyncio.Future[None]] = set()
        self._listeners: list[Callable[[tuple[Event, ...]], None]] = []

    async def load(self) -> None:
        """Read everything; call before `run` and before the first update."""
        with self.reads.timed():
            snapshot = await self.store.snapshot()
        for entry in snapshot.entries:
            self._put(entry.key, entry.value, entry.revision)
        self.view.revision = snapshot.revision

    async def run(self) -> None:
        """Follow the store for as long as the manager lives."""
        while True:
            store = self.store
            try:
                async for batch in store.watch("", self.view.revision):
                    self._apply(batch)
                if store is self.store:
                    return
            except Compacted:
                log.warning("the store's history is gone: reading it afresh")
                await self._reload()

    async def move(self, fill: Callable[[Snapshot], Awaitable[Store]]) -> None:
        """Go on in another store, which `fill` makes from what is in the present one. Writes wait meanwhile.

        The new store's revisions must be above the old one's. When `fill` raises nothing has changed.
        """
        async with self._writing:
            old = self.store
            self.store = await fill(await old.snapshot())
            await self._reload()
            await old.close()

    async def update(self, change: Callable[[Transaction], R]) -> R:
        """Run `change` on a transaction and commit it; run it again on a newer view if somebody else was faster.

        When this returns the view has the commit, unless the store fell silent just then. `change` may raise to abort:
        then nothing is written. Raises `Conflict` when it never gets through, `Unavailable` when the store does not
        answer. Whoever waited for somebody else who got no answer is told the same, and does not begin to wait himself.
        """
        clock = asyncio.get_running_loop().time
        for _ in range(ATTEMPTS):
            began = clock()
            async with self._writing:
                if self._silence is not None and self._silence[0] > began:
                    raise Silent(str(self._silence[1]))
                transaction = Transaction(self.view)
                result = change(transaction)
                changes, expect = transaction.changes()
                if not changes:
                    return result
                try:
                    with self.writes.timed():
                        revision = await self.store.commit(changes, expect, transaction.revision)
                except Mismatch:
                    seen = self.view.revision
                except Silent as error:
                    self._silence = clock(), error
                    raise
                else:
                    self._enter(transaction, changes, revision)
                    try:
                        await self._hear_of(revision)
                    except Unavailable as error:
                        log.warning("a commit is made that this manager has not seen yet: %s", error)
                    return result
            await self._hear_of(seen + 1)  # somebody else's commit is on its way to us
        raise Conflict("the cluster's state changes faster than this request can be applied; try again")

    async def wait(self, revision: int) -> None:
        """Until this view has `revision`."""
        while self.view.revision < revision:
            await self._next()

    async def _hear_of(self, revision: int) -> None:
        """Until this view has `revision`, or what there is now. Raises `Unavailable` when the store does not say."""
        try:
            async with asyncio.timeout(NEWS):
                await self.wait(revision)
        except TimeoutError:
            await self._reload()

    async def changed(self, after: int) -> int:
        """Until the view is newer than `after`; returns its revision."""
        await self.wait(after + 1)
        return self.view.revision

    def on_commit(self, listener: Callable[[tuple[Event, ...]], None]) -> None:
        """Call `listener` with each commit's events, in order, after the view has them."""
        self._listeners.append(listener)

    async def _next(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def _enter(self, transaction: Transaction, changes: Iterable[Put | Delete], revision: int) -> None:
        """Our own commit, without a round through the watch, unless an earlier one of somebody else is missing."""
        if revision != self.view.revision + 1:
            return
        self.view.adopt(transaction, revision)
        self._advance(
            tuple(Event(change.key, change.value if isinstance(change, Put) else None, revision) for change in changes)
        )

    def _apply(self, batch: tuple[Event, ...]) -> None:
        events = tuple(event for event in batch if event.revision > self.view.revision)
        if not events:
            return
        for event in events:
            if event.value is not None:
                self._put(event.key, event.value, event.revision)
                continue
            kind, identifier = self._split(event.key)
            if kind is not None:
                self.view._unset(kind, identifier)
        self._advance(events)

    def _advance(self, events: tuple[Event, ...]) -> None:
        self.view.revision = events[-1].revision
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        for listener in self._listeners:
            listener(events)

    async def _reload(self) -> None:
        """What changed while we were not looking, as one batch of events."""
        with self.reads.timed():
            snapshot = await self.store.snapshot()
        if snapshot.revision <= self.view.revision:  # we have heard of more while it was read
            return
        known = {PREFIX[kind] + value.id: value.version for kind in PREFIX for value in self.view.all(kind)}
        present = {entry.key for entry in snapshot.entries}
        events = [Event(key, None, snapshot.revision) for key in known if key not in present]
        for entry in snapshot.entries:
            if known.get(entry.key) != entry.revision:
                self._put(entry.key, entry.value, entry.revision)
                events.append(Event(entry.key, entry.value, snapshot.revision))
        for event in events:
            kind, identifier = self._split(event.key)
            if event.value is None and kind is not None:
                self.view._unset(kind, identifier)
        if events:
            self._advance(tuple(events))
        self.view.revision = snapshot.revision

    def _put(self, key: str, value: bytes, revision: int) -> None:
        kind, _ = self._split(key)
        if kind is not None:
            self.view._set(msgspec.structs.replace(codec.unpack(value, kind), version=revision))

    @staticmethod
    def _split(key: str) -> tuple[type[Any] | None, str]:
        prefix, _, identifier = key.partition("/")
        return KIND.get(prefix + "/"), identifier
