"""Typed tables over a store: one per kind of object, kept in memory, written in optimistic transactions."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import msgspec

from hivemesh.model.cluster import Cluster
from hivemesh.model.errors import Conflict
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import Service
from hivemesh.model.task import Task
from hivemesh.store.api import Delete, Event, Expect, Mismatch, Put, Store
from hivemesh.wire import codec

T = TypeVar("T", Cluster, Node, Network, Service, Task)
R = TypeVar("R")
AnyObject = Cluster | Node | Network | Service | Task

PREFIX: dict[type[Any], str] = {
    Cluster: "cluster/",
    Node: "node/",
    Network: "network/",
    Service: "service/",
    Task: "task/",
}
KIND = {prefix: kind for kind, prefix in PREFIX.items()}
ATTEMPTS = 10
"""How often a transaction is tried again after somebody else was faster."""


class View:
    """What the store holds, read-only. Consistent between two awaits."""

    def __init__(self, objects: dict[type[Any], dict[str, Any]], revision: int) -> None:
        self._objects = objects
        self.revision = revision

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
        found: Cluster = next(iter(self._objects[Cluster].values()))
        return found

    def tasks_of(self, service: str) -> list[Task]:
        """The tasks of a service, dead ones included."""
        return [task for task in self.all(Task) if task.service_id == service]


class Transaction(View):
    """A view with changes staged on top: reads see them, nobody else does until commit."""

    def __init__(self, base: View) -> None:
        super().__init__({kind: dict(objects) for kind, objects in base._objects.items()}, base.revision)
        self._base = base
        self.staged: dict[tuple[type[Any], str], AnyObject | None] = {}

    def put(self, value: T) -> T:
        """Create or replace."""
        kind = type(value)
        if self._objects[kind].get(value.id) != value:
            self._objects[kind][value.id] = value
            self.staged[kind, value.id] = value
        return value

    def delete(self, value: AnyObject) -> None:
        """Remove; removing what is not there is fine."""
        kind = type(value)
        if self._objects[kind].pop(value.id, None) is not None:
            self.staged[kind, value.id] = None

    def changes(self) -> tuple[list[Put | Delete], list[Expect]]:
        """What to commit, and the versions it was computed from."""
        puts: list[Put | Delete] = []
        expect: list[Expect] = []
        for (kind, identifier), value in self.staged.items():
            key = PREFIX[kind] + identifier
            before = self._base._objects[kind].get(identifier)
            if before is None and value is None:
                continue
            expect.append(Expect(key, before.version if before else 0))
            puts.append(Put(key, codec.pack(value)) if value is not None else Delete(key))
        return puts, expect


class Tables:
    """The cluster's state in memory, following the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.view = View({kind: {} for kind in PREFIX}, 0)
        self._changed = asyncio.Condition()
        self._listeners: list[Callable[[tuple[Event, ...]], None]] = []

    async def load(self) -> None:
        """Read everything; call before `run` and before the first update."""
        snapshot = await self.store.snapshot()
        for entry in snapshot.entries:
            self._put(entry.key, entry.value, entry.revision)
        self.view.revision = snapshot.revision

    async def run(self) -> None:
        """Follow the store for as long as the manager lives."""
        async for batch in self.store.watch("", self.view.revision):
            await self._apply(batch)

    async def update(self, change: Callable[[Transaction], R]) -> R:
        """Run `change` on a transaction and commit it; run it again on a newer view if somebody else was faster.

        `change` may raise to abort: then nothing is written. Raises `Conflict` when it never gets through.
        """
        for _ in range(ATTEMPTS):
            transaction = Transaction(self.view)
            result = change(transaction)
            changes, expect = transaction.changes()
            if not changes:
                return result
            try:
                revision = await self.store.commit(changes, expect)
            except Mismatch:
                await asyncio.sleep(0)
                continue
            await self.wait(revision)
            return result
        raise Conflict("the cluster's state changes faster than this request can be applied; try again")

    async def wait(self, revision: int) -> None:
        """Until this view has `revision`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.view.revision >= revision)

    async def changed(self, after: int) -> int:
        """Until the view is newer than `after`; returns its revision."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.view.revision > after)
            return self.view.revision

    def on_commit(self, listener: Callable[[tuple[Event, ...]], None]) -> None:
        """Call `listener` with each commit's events, after the view has them."""
        self._listeners.append(listener)

    async def _apply(self, batch: Iterable[Event]) -> None:
        events = tuple(batch)
        async with self._changed:
            for event in events:
                if event.value is None:
                    kind, identifier = self._split(event.key)
                    if kind is not None:
                        self.view._objects[kind].pop(identifier, None)
                else:
                    self._put(event.key, event.value, event.revision)
                self.view.revision = max(self.view.revision, event.revision)
            self._changed.notify_all()
        for listener in self._listeners:
            listener(events)

    def _put(self, key: str, value: bytes, revision: int) -> None:
        kind, identifier = self._split(key)
        if kind is not None:
            self.view._objects[kind][identifier] = msgspec.structs.replace(codec.unpack(value, kind), version=revision)

    @staticmethod
    def _split(key: str) -> tuple[type[Any] | None, str]:
        prefix, _, identifier = key.partition("/")
        return KIND.get(prefix + "/"), identifier
