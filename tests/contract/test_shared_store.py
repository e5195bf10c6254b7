"""Managers on one real etcd: one leads at a time, the state moves there whole, and nobody decides on old news."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hivemesh.daemon import outside
from hivemesh.model.cluster import Cluster, SwarmSpec
from hivemesh.model.errors import Conflict, Invalid
from hivemesh.model.ids import ClusterID, NodeID
from hivemesh.model.node import Node, NodeSpec
from hivemesh.pki.seal import KEY_LENGTH, Seal
from hivemesh.store.api import Mismatch, Put, Snapshot, Store
from hivemesh.store.etcd import EtcdStore, fill
from hivemesh.store.etcdapi import EtcdClient, RangeResponse
from hivemesh.store.leader import EtcdElection
from hivemesh.store.sealed import SealedStore
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables, Transaction
from running_etcd import running_etcd

SEAL = Seal(bytes(KEY_LENGTH))
SECRET = "-----BEGIN PRIVATE KEY-----"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as url:
        yield url


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- leading ---------------------------------------------------------------------------------------------------------


@dataclass
class Candidate:
    election: EtcdElection
    client: EtcdClient
    leads: bool = False
    willing: bool = True
    running: "asyncio.Task[None] | None" = None
    overlaps: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def candidates(url: str, root: str, count: int) -> AsyncIterator[list[Candidate]]:
    made: list[Candidate] = []
    for number in range(count):
        client = EtcdClient([url])
        election = EtcdElection(client, root.encode(), NodeID(f"n{number}"), lambda n=number: made[n].willing)  # type: ignore[misc]
        made.append(Candidate(election, client))

    async def lead(me: Candidate) -> None:
        if any(other.leads for other in made):
            me.overlaps.append("two at once")
        me.leads = True
        try:
            await asyncio.Event().wait()
        finally:
            me.leads = False

    for each in made:
        each.running = asyncio.create_task(each.election.run(lambda each=each: lead(each)))  # type: ignore[misc]
    try:
        yield made
    finally:
        for each in made:
            assert each.running is not None
            each.running.cancel()
        await asyncio.gather(*(each.running for each in made if each.running), return_exceptions=True)
        for each in made:
            await each.client.close()
        assert [each.overlaps for each in made] == [[]] * count


async def test_one_leads_all_know_who_and_another_takes_over(etcd: str) -> None:
    async with candidates(etcd, "leading/", 3) as all_three:
        await eventually(lambda: sum(each.leads for each in all_three) == 1)
        first = next(each for each in all_three if each.leads)
        name = first.election.leader
        await eventually(lambda: all(each.election.leader == name for each in all_three))
        first.willing = False  # it was demoted
        await eventually(lambda: any(each.leads for each in all_three if each is not first))
        second = next(each for each in all_three if each.leads)
        assert second.running is not None
        second.running.cancel()  # it stops politely
        await eventually(lambda: any(each.leads for each in all_three if each not in (first, second)))


async def test_a_leader_that_vanishes_is_followed_when_its_lease_is_over(etcd: str) -> None:
    async with candidates(etcd, "vanishing/", 2) as both:
        await eventually(lambda: any(each.leads for each in both))
        first = next(each for each in both if each.leads)
        other = next(each for each in both if each is not first)

        async def mute(lease: int) -> None:
            """No goodbye."""

        first.client.revoke = mute  # type: ignore[method-assign]
        assert first.running is not None
        first.running.cancel()
        await eventually(lambda: other.leads)


async def test_what_was_computed_before_another_was_chosen_counts_no_more(etcd: str) -> None:
    store = await EtcdStore.create(EtcdClient([etcd]), "fenced/", history=None)
    try:
        before = await store.commit([Put("node/a", b"1")])
        async with candidates(etcd, "fenced/", 1) as (only,):
            await eventually(lambda: only.leads)
            with pytest.raises(Mismatch):
                await store.commit([Put("node/a", b"2")], at=before)
            async for batch in store.watch("", before):  # everybody's view gets past it
                assert await store.commit([Put("node/a", b"2")], at=batch[0].revision) > batch[0].revision
                break
    finally:
        await store.close()


# --- moving ----------------------------------------------------------------------------------------------------------


def _cluster() -> Cluster:
    return Cluster(id=ClusterID("c"), spec=SwarmSpec(), ca_key=SECRET)


async def test_state_moves_from_a_file_to_etcd_whole_and_sealed(etcd: str, tmp_path: Path) -> None:
    tables = Tables(SealedStore(await SqliteStore.open(tmp_path), SEAL))
    await tables.load()
    following = asyncio.create_task(tables.run())
    client = EtcdClient([etcd])
    try:
        await tables.update(lambda tx: tx.put(_cluster()))
        for number in range(300):
            await tables.update(lambda tx, n=number: tx.put(Node(id=NodeID(f"n{n}"), spec=NodeSpec())))  # type: ignore[misc]
        before = tables.view.revision

        async def move(snapshot: Snapshot) -> Store:
            store = await EtcdStore.create(client, "moving/", after=snapshot.revision)
            assert await EtcdStore.open(client, "moving/") is None, "it counts only when it is whole"
            await fill(SealedStore(store, SEAL), snapshot.entries)
            await store.finish()
            return SealedStore(store, SEAL)

        await tables.move(move)
        assert tables.view.revision > before
        assert tables.view.cluster.ca_key == SECRET
        await tables.update(lambda tx: tx.put(Node(id=NodeID("late"), spec=NodeSpec())))
        raw = await EtcdStore.open(client, "moving/")
        assert raw is not None
        held = await raw.snapshot()
        assert len(held.entries) == 302
        assert not any(SECRET.encode() in entry.value for entry in held.entries)
        again = Tables(SealedStore(raw, SEAL))
        await again.load()
        assert again.view.revision == tables.view.revision
        assert {node.version for node in again.view.all(Node)} == {node.version for node in tables.view.all(Node)}
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await tables.store.close()


async def test_managers_beside_each_other_never_give_one_thing_twice(etcd: str) -> None:
    url = etcd.replace("http", "etcd") + "/beside"
    await (await outside.create(url, SEAL)).close()
    managers: list[Tables] = []
    for _ in range(3):
        client, root = outside.connect(url)
        store = await EtcdStore.open(client, root, history=None)
        assert store is not None
        managers.append(Tables(SealedStore(store, SEAL)))
        await managers[-1].load()
    following = [asyncio.create_task(tables.run()) for tables in managers]

    def take(name: str) -> Callable[[Transaction], None]:
        def choose(tx: Transaction) -> None:
            taken = {node.addr for node in tx.all(Node)}
            free = next(str(number) for number in range(100) if str(number) not in taken)
            tx.put(Node(id=NodeID(name), spec=NodeSpec(), addr=free))

        return choose

    try:
        await asyncio.gather(*(managers[m].update(take(f"{m}-{n}")) for n in range(10) for m in range(3)))
        last = max(tables.view.revision for tables in managers)
        for tables in managers:
            await tables.wait(last)
            assert sorted(int(node.addr) for node in tables.view.all(Node)) == list(range(30))
        with pytest.raises(Conflict, match="already holds a swarm"):
            await outside.create(url, SEAL)
        await outside.erase(url)
        await eventually(lambda: all(not tables.view.all(Node) for tables in managers))
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for tables in managers:
            await tables.store.close()


async def test_a_store_of_another_version_is_refused(etcd: str) -> None:
    client = EtcdClient([etcd])
    try:
        body = {"key": b"other/meta", "value": b'{"format": 99, "version": "9.9"}'}
        await client.call("kv/put", body, RangeResponse)
        with pytest.raises(Invalid, match=r"another version|version 9\.9"):
            await EtcdStore.open(client, "other/")
    finally:
        await client.close()
