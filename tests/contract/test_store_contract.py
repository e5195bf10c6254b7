"""What every store engine must do. An engine joins by adding its fixture to `ENGINES`."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from hivemesh.pki.seal import KEY_LENGTH, Seal
from hivemesh.store.api import Compacted, Delete, Event, Expect, Mismatch, Put, Store
from hivemesh.store.etcd import EtcdStore
from hivemesh.store.etcdapi import EtcdClient
from hivemesh.store.sealed import SealedStore
from hivemesh.store.sqlite import SqliteStore
from running_etcd import running_etcd

Opener = Callable[[], Awaitable[Store]]

HISTORY = 50
"""Events the engines under test keep at least; some keep twice as many before they forget."""


async def _sqlite(directory: Path) -> Store:
    return await SqliteStore.open(directory, history=HISTORY)


async def _sealed(directory: Path) -> Store:
    return SealedStore(await _sqlite(directory), Seal(bytes(KEY_LENGTH)))


async def _etcd(directory: Path) -> Store:
    client = EtcdClient([RUNNING[0]])
    root = f"{directory}/"
    found = await EtcdStore.open(client, root, history=HISTORY)
    if found is None:
        found = await EtcdStore.create(client, root, history=HISTORY, after=7)
        await found.finish()
    return found


ENGINES: dict[str, Callable[[Path], Awaitable[Store]]] = {"sqlite": _sqlite, "sealed sqlite": _sealed, "etcd": _etcd}
RUNNING: list[str] = []
"""Where the etcd of this module answers."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as url:
        RUNNING[:] = [url]
        yield


@pytest.fixture(params=ENGINES)
async def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Closes the store opened last and opens it again, as a restarted manager does."""
    if request.param == "etcd":
        request.getfixturevalue("etcd")
    opened: list[Store] = []

    async def open_again() -> Store:
        if opened:
            await opened.pop().close()
        opened.append(await ENGINES[request.param](tmp_path / "store"))
        return opened[0]

    yield open_again
    for store in opened:
        await store.close()


@pytest.fixture
async def store(reopen: Opener) -> Store:
    return await reopen()


async def following(store: Store, prefix: str, after: int, batches: int) -> list[tuple[Event, ...]]:
    found = []
    async with asyncio.timeout(5):
        async for batch in store.watch(prefix, after):
            found.append(batch)
            if len(found) == batches:
                break
    return found


async def test_each_commit_grows_the_revision_by_one(store: Store) -> None:
    start = (await store.snapshot()).revision
    first = await store.commit([Put("a", b"1"), Put("b", b"1")])
    second = await store.commit([Put("c", b"1")])
    assert (first, second) == (start + 1, start + 2)
    snapshot = await store.snapshot()
    assert snapshot.revision == second
    assert {entry.key: entry.revision for entry in snapshot.entries} == {"a": first, "b": first, "c": second}


async def test_a_snapshot_holds_exactly_what_its_prefix_covers(store: Store) -> None:
    await store.commit(
        [Put("task/1", b"x"), Put("task0", b"x"), Put("task/", b"x"), Put("tas", b"x"), Put("Task/1", b"")]
    )
    assert [entry.key for entry in (await store.snapshot("task/")).entries] == ["task/", "task/1"]
    assert len((await store.snapshot()).entries) == 5


async def test_a_commit_at_a_revision_that_is_past_changes_nothing(store: Store) -> None:
    first = await store.commit([Put("a", b"1")])
    second = await store.commit([Put("b", b"1")], at=first)
    with pytest.raises(Mismatch):
        await store.commit([Put("c", b"1")], at=first)
    with pytest.raises(Mismatch):
        await store.commit([Put("c", b"1")], [Expect("a", first)], at=first)
    assert await store.commit([Put("c", b"1")], [Expect("a", first)], at=second) == second + 1
    assert len((await store.snapshot()).entries) == 3


async def test_a_condition_that_fails_changes_nothing(store: Store) -> None:
    written = await store.commit([Put("a", b"1")])
    for expect in (Expect("a", 0), Expect("a", written + 1), Expect("b", written)):
        with pytest.raises(Mismatch) as caught:
            await store.commit([Put("other", b"1"), Put("a", b"2")], [Expect("other", 0), expect])
        assert caught.value.key == expect.key
    snapshot = await store.snapshot()
    assert [(entry.key, entry.value) for entry in snapshot.entries] == [("a", b"1")]
    assert snapshot.revision == written


async def test_conditions_that_hold_let_the_commit_through(store: Store) -> None:
    written = await store.commit([Put("a", b"1")], [Expect("a", 0)])
    deleted = await store.commit([Delete("a"), Put("b", b"1")], [Expect("a", written), Expect("b", 0)])
    assert await store.commit([Put("a", b"2")], [Expect("a", 0), Expect("b", deleted)]) == deleted + 1


async def test_deleting_what_is_not_there_is_no_change(store: Store) -> None:
    revision = await store.commit([Put("a", b"1")])
    await store.commit([Delete("b")])
    assert [entry.key for entry in (await store.snapshot()).entries] == ["a"]
    later = await store.commit([Put("c", b"1")])
    (batch,) = await following(store, "", revision, 1)
    assert [event.key for event in batch] == ["c"]
    assert batch[0].revision == later


async def test_a_watch_sees_every_commit_in_order_as_one_batch(store: Store) -> None:
    start = (await store.snapshot()).revision
    watching = asyncio.create_task(following(store, "", start, 3))
    await asyncio.sleep(0)
    one = await store.commit([Put("a", b"1"), Put("b", b"2")])
    two = await store.commit([Delete("a")])
    three = await store.commit([Put("b", b"3")])
    assert await watching == [
        (Event("a", b"1", one), Event("b", b"2", one)),
        (Event("a", None, two),),
        (Event("b", b"3", three),),
    ]


async def test_a_watch_of_a_prefix_sees_nothing_else(store: Store) -> None:
    start = (await store.snapshot()).revision
    await store.commit([Put("node/1", b"1")])
    both = await store.commit([Put("node/2", b"1"), Put("task/1", b"1")])
    assert await following(store, "task/", start, 1) == [(Event("task/1", b"1", both),)]


async def test_a_watch_resumes_after_the_revision_it_had(store: Store) -> None:
    revisions = [await store.commit([Put("a", b"%d" % number)]) for number in range(5)]
    batches = await following(store, "", revisions[1], 3)
    assert [batch[0].revision for batch in batches] == revisions[2:]


async def test_several_watches_see_the_same(store: Store) -> None:
    start = (await store.snapshot()).revision
    watches = [asyncio.create_task(following(store, "", start, 20)) for _ in range(3)]
    await asyncio.gather(*(store.commit([Put(f"k{number}", b"")]) for number in range(20)))
    first, second, third = await asyncio.gather(*watches)
    assert first == second == third
    assert [batch[0].revision for batch in first] == list(range(start + 1, start + 21))


async def test_a_watch_from_forgotten_history_is_told_so(store: Store) -> None:
    start = (await store.snapshot()).revision
    for number in range(3 * HISTORY):
        await store.commit([Put("a", b"%d" % number)])
    with pytest.raises(Compacted):
        await following(store, "", start, 1)
    latest = (await store.snapshot()).revision
    assert len(await following(store, "", latest - HISTORY // 2, HISTORY // 2)) == HISTORY // 2


async def test_a_watch_that_is_cancelled_leaves_the_others_alone(store: Store) -> None:
    start = (await store.snapshot()).revision
    cancelled, kept = (asyncio.create_task(following(store, "", start, 1)) for _ in range(2))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await store.commit([Put("a", b"1")])
    assert len(await kept) == 1


async def test_big_values_and_any_bytes_come_back(store: Store, reopen: Opener) -> None:
    big, odd = os.urandom(1_000_000), bytes(range(256))
    await store.commit([Put("big", big), Put("odd/ключ %_", odd), Put("empty", b"")])
    again = {entry.key: entry.value for entry in (await (await reopen()).snapshot()).entries}
    assert again == {"big": big, "odd/ключ %_": odd, "empty": b""}


async def test_reopening_keeps_entries_and_revisions(store: Store, reopen: Opener) -> None:
    await store.commit([Put("a", b"1"), Put("b", b"1")])
    revision = await store.commit([Delete("a"), Put("b", b"2")])
    before = await store.snapshot()
    again = await reopen()
    assert await again.snapshot() == before
    assert await again.commit([Put("c", b"1")], [Expect("b", revision)]) == revision + 1
    assert [batch[0].key for batch in await following(again, "", revision, 1)] == ["c"]


async def test_concurrent_writers_of_one_key_lose_no_update(store: Store) -> None:
    await store.commit([Put("counter", b"0")])

    async def count() -> None:
        done = 0
        while done < 10:
            (entry,) = (await store.snapshot("counter")).entries
            try:
                await store.commit(
                    [Put("counter", b"%d" % (int(entry.value) + 1))], [Expect("counter", entry.revision)]
                )
                done += 1
            except Mismatch:
                continue

    await asyncio.gather(*(count() for _ in range(5)))
    (entry,) = (await store.snapshot("counter")).entries
    assert int(entry.value) == 50


async def test_commits_that_wait_together_stay_apart(store: Store) -> None:
    """However an engine groups them: each has its own revision, and a mismatch of one harms no other."""
    start = (await store.snapshot()).revision
    results = await asyncio.gather(
        *(store.commit([Put(f"k{number}", b"1")], [Expect("missing", number % 2)]) for number in range(20)),
        return_exceptions=True,
    )
    revisions = sorted(result for result in results if isinstance(result, int))
    assert revisions == list(range(start + 1, start + 11))
    assert all(isinstance(result, Mismatch) for result in results[1::2])
    assert len((await store.snapshot()).entries) == 10


WRITER = """
import asyncio, sys
from pathlib import Path
from hivemesh.store.api import Put
from hivemesh.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    number = 0
    while True:
        both = [Put(f"left/{number}", b"x" * 2000), Put(f"right/{number}", b"x")]
        print(number, await store.commit(both), flush=True)
        number += 1

asyncio.run(main())
"""


async def test_killing_a_writer_loses_nothing_committed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        committed = [child.stdout.readline().split() for _ in range(200)]
        child.send_signal(signal.SIGKILL)
        committed += [line.split() for line in child.stdout.read().splitlines() if line.count(" ") == 1]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    store = await SqliteStore.open(tmp_path)
    try:
        snapshot = await store.snapshot()
        found = {entry.key: entry.revision for entry in snapshot.entries}
        for number, revision in committed:
            assert found[f"left/{number}"] == found[f"right/{number}"] == int(revision)
        assert snapshot.revision >= len(committed)
        assert len(found) == 2 * snapshot.revision  # and nothing half made
    finally:
        await store.close()
