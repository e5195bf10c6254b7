"""Typed tables: transactions on top of a view, and the view following the store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import cast
from unittest.mock import AsyncMock

import msgspec
import pytest

from hivemesh.model.addr import MAC
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.model.ids import EndpointID, NetworkID, NodeID, ServiceID, TaskID
from hivemesh.model.node import Node, NodeSpec
from hivemesh.model.service import Service, ServiceSpec, TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.store.api import Event, Put, Silent, Snapshot, Store
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables, Transaction, View


def task(identifier: str, service: str = "s1", node: str | None = None) -> Task:
    return Task(
        id=TaskID(identifier),
        service_id=ServiceID(service),
        service_name="web",
        slot=1,
        spec=TaskSpec(),
        node_id=NodeID(node) if node else None,
    )


def _node(identifier: str) -> Node:
    return Node(id=NodeID(identifier), spec=NodeSpec())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path)
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def running(store: SqliteStore) -> AsyncIterator[Tables]:
    tables = Tables(store)
    await tables.load()
    following = asyncio.create_task(tables.run())
    try:
        yield tables
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def test_a_transaction_reads_its_own_changes_and_nobody_else_does() -> None:
    view = View()
    first = Transaction(view)
    for value in (task("a", node="n1"), task("b"), task("c", "s2", "n1")):
        first.put(value)
    view.adopt(first, 1)
    tx = Transaction(view)
    tx.put(msgspec.structs.replace(view.get(Task, "a") or task("x"), service_id=ServiceID("s2")))
    tx.delete(task("b"))
    tx.put(task("d", "s1", "n1"))
    assert {value.id for value in tx.tasks_of("s1")} == {"d"}
    assert {value.id for value in tx.tasks_of("s2")} == {"a", "c"}
    assert {value.id for value in tx.tasks_on("n1")} == {"a", "c", "d"}
    assert {value.id for value in tx.all(Task)} == {"a", "c", "d"}
    assert tx.get(Task, "b") is None
    assert {value.id for value in view.tasks_of("s1")} == {"a", "b"}
    view.adopt(tx, 2)
    assert {value.id for value in view.tasks_of("s1")} == {"d"}
    assert {value.id for value in view.tasks_on("n1")} == {"a", "c", "d"}


def test_changes_that_cancel_out_are_none() -> None:
    view = View()
    tx = Transaction(view)
    tx.put(task("a"))
    tx.delete(task("a"))
    assert tx.changes() == ([], [])
    tx.put(task("b"))
    view.adopt(tx, 1)
    again = Transaction(view)
    again.put(view.get(Task, "b") or task("x"))
    assert again.edits == 0


async def test_an_update_sees_its_own_commit_at_once(store: SqliteStore) -> None:
    async with running(store) as tables:
        seen: list[tuple[Event, ...]] = []
        tables.on_commit(seen.append)
        value = await tables.update(lambda tx: tx.put(task("a")))
        found = tables.view.get(Task, value.id)
        assert found is not None
        assert found.version == tables.view.revision == 1
        await asyncio.sleep(0.01)  # the watch brings the same commit again
        assert [[event.key for event in batch] for batch in seen] == [["task/a"]]


async def test_what_was_committed_equals_what_is_loaded(store: SqliteStore) -> None:
    attachment = Attachment(
        endpoint_id=EndpointID("e"),
        network_id=NetworkID("n"),
        addresses=(IPv4Interface("10.0.0.5/24"), IPv6Interface("fd00::5/64")),
        mac=MAC("02:42:0a:00:00:05"),
    )
    async with running(store) as tables:
        await tables.update(lambda tx: tx.put(msgspec.structs.replace(task("a"), attachments=(attachment,))))
        fresh = Tables(store)
        await fresh.load()
        assert list(fresh.view.all(Task)) == list(tables.view.all(Task))
        assert fresh.view.revision == tables.view.revision


async def test_a_change_that_raises_writes_nothing(store: SqliteStore) -> None:
    def change(tx: Transaction) -> None:
        tx.put(task("a"))
        raise Invalid("no")

    async with running(store) as tables:
        with pytest.raises(Invalid):
            await tables.update(change)
        assert not tables.view.all(Task)
        assert (await store.snapshot()).revision == 0


async def test_concurrent_updates_of_one_object_are_all_applied(store: SqliteStore) -> None:
    def count(tx: Transaction) -> None:
        found = tx.get(Service, "s")
        assert found is not None
        tx.put(msgspec.structs.replace(found, spec_version=found.spec_version + 1))

    async with running(store) as tables:
        await tables.update(lambda tx: tx.put(Service(id=ServiceID("s"), spec=ServiceSpec(name="s"))))
        await asyncio.gather(*(tables.update(count) for _ in range(30)))
        found = tables.view.get(Service, "s")
        assert found is not None
        assert found.spec_version == 30


async def test_two_tables_on_one_store_follow_each_other_and_never_overwrite(store: SqliteStore) -> None:
    async with running(store) as one, running(store) as two:
        await one.update(lambda tx: tx.put(Node(id=NodeID("n"), spec=NodeSpec())))

        def add(name: str, tx: Transaction) -> None:
            node = tx.get(Node, "n")
            if node is None:
                raise Invalid("not there yet")
            labels = node.spec.labels | {name: "yes"}
            tx.put(msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels=labels)))

        await two.wait(1)
        for number in range(5):
            names = (f"one{number}", f"two{number}")
            await asyncio.gather(*(t.update(partial(add, name)) for t, name in zip((one, two), names, strict=True)))
        revision = max(one.view.revision, two.view.revision)
        await one.wait(revision)
        await two.wait(revision)
        nodes = [tables.view.get(Node, "n") for tables in (one, two)]
        assert nodes[0] == nodes[1]
        assert nodes[0] is not None
        assert len(nodes[0].spec.labels) == 10


async def test_a_view_that_missed_too_much_reads_afresh(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path, history=4)
    try:
        writer, reader = Tables(store), Tables(store)
        await writer.update(lambda tx: tx.put(task("gone")))
        await reader.load()
        await writer.update(lambda tx: tx.delete(task("gone")))
        for number in range(20):
            await writer.update(lambda tx, number=number: tx.put(task(f"t{number}")))  # type: ignore[misc]
        seen: list[Event] = []
        reader.on_commit(seen.extend)
        following = asyncio.create_task(reader.run())
        async with asyncio.timeout(10):
            await reader.wait(writer.view.revision)
        assert {value.id: value for value in reader.view.all(Task)} == {
            value.id: value for value in writer.view.all(Task)
        }
        assert {event.key for event in seen if event.value is None} == {"task/gone"}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    finally:
        await store.close()


class _Deaf:
    """The same store, whose watch never says anything."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def watch(self, prefix: str, after: int) -> AsyncIterator[tuple[Event, ...]]:
        await asyncio.Event().wait()
        yield ()


async def test_a_manager_whose_watch_is_deaf_asks_the_store_and_never_goes_back(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hivemesh.store.tables.NEWS", 0.02)
    async with running(store) as other:
        deaf = Tables(cast(Store, _Deaf(store)))
        await deaf.load()
        for number in range(3):
            await other.update(lambda tx, n=number: tx.put(_node(f"theirs{n}")))  # type: ignore[misc]
            async with asyncio.timeout(5):
                await deaf.update(lambda tx, n=number: tx.put(_node(f"ours{n}")))  # type: ignore[misc]
            assert {node.id for node in deaf.view.all(Node)} == {
                f"{whose}{n}" for whose in ("theirs", "ours") for n in range(number + 1)
            }
        before = await store.snapshot()
        await deaf.update(lambda tx: tx.put(_node("last")))
        monkeypatch.setattr(store, "snapshot", AsyncMock(return_value=before))  # was read before, comes late
        await deaf._reload()
        assert deaf.view.get(Node, "last") is not None


async def test_a_commit_counts_although_the_store_falls_silent_before_it_is_seen(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hivemesh.store.tables.NEWS", 0.02)
    deaf = Tables(cast(Store, _Deaf(store)))
    await deaf.load()
    monkeypatch.setattr(deaf, "_enter", lambda *_: None)  # as when somebody else's commit is missing in between
    monkeypatch.setattr(store, "snapshot", AsyncMock(side_effect=Unavailable("no answer")))
    async with asyncio.timeout(5):
        await deaf.update(lambda tx: tx.put(_node("n1")))
    monkeypatch.undo()
    assert [entry.key for entry in (await store.snapshot()).entries] == ["node/n1"]


async def test_many_who_wait_for_a_store_that_is_silent_are_refused_together(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def commit(*_: object) -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        raise Silent("no answer in time")

    async with running(store) as tables:
        with monkeypatch.context() as silent:
            silent.setattr(store, "commit", commit)
            changes = [tables.update(lambda tx, n=number: tx.put(_node(f"n{n}"))) for number in range(20)]  # type: ignore[misc]
            told = await asyncio.gather(*changes, return_exceptions=True)
        assert {(type(error), str(error)) for error in told} == {(Silent, "no answer in time")}
        assert asked == 1
        await tables.update(lambda tx: tx.put(_node("later")))
        assert [node.id for node in tables.view.all(Node)] == ["later"]


async def test_a_move_to_another_store_takes_everything_along_and_revisions_grow_on(tmp_path: Path) -> None:
    old = await SqliteStore.open(tmp_path / "old")
    tables = Tables(old)
    await tables.load()
    running = asyncio.create_task(tables.run())
    try:
        await tables.update(lambda tx: tx.put(_node("n1")))
        told: list[str] = []
        tables.on_commit(lambda events: told.extend(event.key for event in events))
        before = tables.view.revision

        async def fill(snapshot: Snapshot) -> Store:
            new = await SqliteStore.open(tmp_path / "new")
            for number in range(snapshot.revision):
                await new.commit([Put("filler", b"%d" % number)])
            await new.commit([Put(entry.key, entry.value) for entry in snapshot.entries])
            return new

        await tables.move(fill)
        assert tables.view.revision > before
        assert tables.view.get(Node, NodeID("n1")) is not None
        await tables.update(lambda tx: tx.put(_node("n2")))
        assert told[-1] == "node/n2"
        assert {entry.key for entry in (await tables.store.snapshot("node/")).entries} == {"node/n1", "node/n2"}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await tables.store.close()


async def test_a_move_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    tables = Tables(store)
    await tables.load()

    async def fill(snapshot: Snapshot) -> Store:
        raise Unavailable("no room there")

    with pytest.raises(Unavailable):
        await tables.move(fill)
    await tables.update(lambda tx: tx.put(_node("n1")))
    assert tables.store is store
    await store.close()


async def test_two_managers_that_choose_by_what_is_free_never_choose_the_same(tmp_path: Path) -> None:
    """Their changes share no key; each reads all the others'."""
    store = await SqliteStore.open(tmp_path)
    both = [Tables(store) for _ in range(2)]
    for tables in both:
        await tables.load()
    following = [asyncio.create_task(tables.run()) for tables in both]

    def take(owner: str, number: int) -> Callable[[Transaction], None]:
        def choose(tx: Transaction) -> None:
            taken = {node.addr for node in tx.all(Node)}
            free = next(str(address) for address in range(100) if str(address) not in taken)
            tx.put(msgspec.structs.replace(_node(f"{owner}{number}"), addr=free))

        return choose

    try:
        await asyncio.gather(*(both[i].update(take("ab"[i], n)) for n in range(10) for i in range(2)))
        found = sorted(int(node.addr) for node in both[0].view.all(Node))
        assert found == list(range(20))
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await store.close()
