"""The facade and the loops on a real store."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from world import SECOND, World, publish, spec

from hivemesh.clock import ManualClock
from hivemesh.control import swarm
from hivemesh.control.manager import RETRY, Manager
from hivemesh.model.errors import Conflict, Exhausted, Invalid, NotFound, OutOfSequence, Unavailable
from hivemesh.model.network import IPAMConfig, NetworkSpec
from hivemesh.model.node import Node
from hivemesh.model.service import RestartPolicy
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.store.api import Delete, Expect, Put
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables


class Stubborn(SqliteStore):
    """A store whose disk is full when told."""

    room: int | None = None  # commits until it is; None: plenty

    async def commit(
        self, changes: Sequence[Put | Delete], expect: Sequence[Expect] = (), at: int | None = None
    ) -> int:
        if self.room == 0:
            raise Unavailable("the disk is full")
        if self.room is not None:
            self.room -= 1
        return await super().commit(changes, expect, at)


class Rig:
    def __init__(self, tables: Tables, store: Stubborn) -> None:
        self.tables = tables
        self.store = store
        self.clock = ManualClock()
        ids = itertools.count(500)
        self.manager = Manager(tables, self.clock, lambda: f"{next(ids):025d}")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await self.tables.changed(self.tables.view.revision)

    async def report(self, task: Task, state: TaskState) -> None:
        status = TaskStatus(timestamp=self.clock.now(), state=state)
        await self.tables.update(lambda tx: tx.put(task.with_report(status)))

    def wanted(self, name: str) -> list[Task]:
        return [task for task in self.tables.view.tasks_of(self.manager.service(name).id) if task.wanted]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    store = await Stubborn.open(tmp_path)
    assert isinstance(store, Stubborn)
    tables = Tables(store)
    await tables.load()
    world = World(2)
    await tables.update(lambda tx: [tx.put(value) for value in (world.view.cluster, world.network("ingress"))])
    await tables.update(lambda tx: [tx.put(node) for node in world.view.all(Node)])
    rig = Rig(tables, store)
    running = [asyncio.create_task(tables.run()), asyncio.create_task(rig.manager.run())]
    try:
        yield rig
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await store.close()


async def test_creating_a_service_is_one_commit_with_everything(rig: Rig) -> None:
    await asyncio.sleep(0.02)
    before = rig.tables.view.revision
    service = await rig.manager.create_service(spec(replicas=2, ports=[publish(8090)]))
    assert service.version == rig.tables.view.revision == before + 1
    assert service.vips
    assert {task.status.state for task in rig.wanted("web")} == {TaskState.ASSIGNED}
    await asyncio.sleep(0.05)
    assert rig.tables.view.revision == before + 1  # the loops find nothing more to do


async def test_a_report_wakes_the_loops_and_a_delay_the_clock(rig: Rig) -> None:
    await rig.manager.create_service(spec(restart=RestartPolicy(delay=5 * SECOND)))
    (task,) = rig.wanted("web")
    await rig.report(task, TaskState.FAILED)
    await rig.until(lambda: [other.id for other in rig.wanted("web")] not in ([], [task.id]))
    assert rig.wanted("web")[0].desired == TaskState.READY
    await asyncio.sleep(0.02)
    rig.clock.advance(5)
    await rig.until(lambda: rig.wanted("web")[0].desired == TaskState.RUNNING)


async def test_update_remove_and_look_up(rig: Rig) -> None:
    made = await rig.manager.create_service(spec())
    scaled = await rig.manager.update_service("web", made.version, spec(replicas=3))
    assert len(rig.wanted("web")) == 3
    assert scaled.previous_spec == made.spec
    with pytest.raises(OutOfSequence):
        await rig.manager.update_service("web", made.version, spec(replicas=4))
    back = await rig.manager.update_service("web", scaled.version, spec(), rollback=True)
    assert back.spec.replicas == 1
    await rig.manager.remove_service(made.id[:24])
    with pytest.raises(NotFound, match="service web not found"):
        rig.manager.service("web")


async def test_names_are_unique_among_requests_at_the_same_time(rig: Rig) -> None:
    results = await asyncio.gather(
        *(rig.manager.create_service(spec(ports=[publish(8000 + n)])) for n in range(5)), return_exceptions=True
    )
    assert len([result for result in results if isinstance(result, Conflict)]) == 4
    results = await asyncio.gather(
        *(rig.manager.create_service(spec(f"s{n}", ports=[publish(9000)])) for n in range(5)), return_exceptions=True
    )
    assert len([result for result in results if isinstance(result, Invalid)]) == 4


async def test_a_network_without_a_subnet_is_refused_and_not_created(rig: Rig) -> None:
    await rig.tables.update(
        lambda tx: tx.put(msgspec.structs.replace(tx.cluster, pools=swarm.choose_pools(["10.0.0.0/24"], 24, [])))
    )
    with pytest.raises(Exhausted, match=r"no free /24 subnet is left .* give one with --subnet"):
        await rig.manager.create_network(NetworkSpec(name="front"))
    assert [network.spec.name for network in rig.manager.networks()] == ["ingress"]
    made = await rig.manager.create_network(NetworkSpec(name="front", ipam=(IPAMConfig(subnet="10.9.0.0/24"),)))
    assert made.vni == 4097
    await rig.manager.remove_network("front")


async def test_nodes_and_settings(rig: Rig) -> None:
    node = rig.manager.node("n2")
    changed = await rig.manager.update_node(
        "n2", node.version, msgspec.structs.replace(node.spec, availability="drain")
    )
    assert changed.version > node.version
    await rig.manager.create_service(spec(replicas=2))
    assert {task.node_id for task in rig.manager.tasks()} == {rig.manager.node("n1").id}
    await rig.manager.remove_node("n2", force=True)
    with pytest.raises(NotFound, match="node n2 not found"):
        rig.manager.node("n2")
    cluster = rig.manager.cluster
    await rig.manager.update_cluster(cluster.version, msgspec.structs.replace(cluster.spec, labels={"a": "b"}))
    assert rig.manager.cluster.spec.labels == {"a": "b"}


async def test_a_full_disk_refuses_requests_and_nothing_is_half_made(rig: Rig) -> None:
    await asyncio.sleep(0.02)
    rig.store.room = 0
    with pytest.raises(Unavailable, match="full"):
        await rig.manager.create_service(spec())
    assert not rig.manager.services()
    assert not rig.manager.tasks()
    rig.store.room = None
    await rig.manager.create_service(spec())


async def test_loops_that_could_not_write_try_again(rig: Rig) -> None:
    await rig.manager.create_service(spec(restart=RestartPolicy(delay=0)))
    (task,) = rig.wanted("web")
    await asyncio.sleep(0.02)
    rig.store.room = 1
    await rig.report(task, TaskState.FAILED)
    await asyncio.sleep(0.05)
    assert not rig.wanted("web")
    rig.store.room = None
    rig.clock.advance(RETRY)
    await rig.until(lambda: bool(rig.wanted("web")))


async def test_a_second_beginning_is_refused(rig: Rig) -> None:
    world = World(1)
    with pytest.raises(Conflict, match="already holds a swarm"):
        await swarm.found(rig.tables, [world.view.cluster])
