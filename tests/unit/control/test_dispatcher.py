"""Sessions against the dispatcher without a network: who gets which frame, and when a task is released."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from port_rig import eventually

from hivemesh.clock import ManualClock
from hivemesh.control.dispatcher import RELEASE_TIMEOUT, Dispatcher
from hivemesh.control.inbox import Inbox, NodeNews
from hivemesh.control.monitor import Monitor
from hivemesh.model.cluster import Cluster, SwarmSpec
from hivemesh.model.errors import Conflict, Unavailable
from hivemesh.model.ids import ClusterID, NodeID, ServiceID, TaskID
from hivemesh.model.node import Node, NodeDescription, NodeSpec
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables, Transaction
from hivemesh.wire import codec
from hivemesh.wire.control import (
    Ack,
    Delta,
    FromAgent,
    FromManager,
    Heartbeat,
    Hello,
    Snapshot,
    TaskItem,
    TaskReport,
    Welcome,
)

N1, N2 = NodeID("n1"), NodeID("n2")
HELLO = Hello(description=NodeDescription(hostname="host"), vtep=ip_address("198.51.100.1"))
HELLO_OF = {N1: HELLO, N2: msgspec.structs.replace(HELLO, vtep=ip_address("fd00:100::2"))}


@dataclass
class Line:
    """An agent's connection, in memory."""

    frames: list[FromManager] = field(default_factory=list)
    closed: int | None = None
    room: asyncio.Event = field(default_factory=asyncio.Event)
    incoming: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)

    async def send(self, data: bytes) -> None:
        await self.room.wait()
        self.frames.append(codec.unpack(data, FromManager))  # type: ignore[arg-type]

    async def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or code
        self.incoming.put_nowait(None)

    def say(self, frame: FromAgent) -> None:
        self.incoming.put_nowait(codec.pack(frame))

    async def read(self) -> AsyncIterator[bytes]:
        while (data := await self.incoming.get()) is not None:
            yield data

    @property
    def revision(self) -> int:
        """Of the last frame with a view."""
        return max((f.revision for f in self.frames if isinstance(f, Snapshot | Delta)), default=-1)


@dataclass
class Rig:
    tables: Tables
    clock: ManualClock
    dispatcher: Dispatcher
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)

    async def connect(self, node: NodeID, hello: Hello | None = None) -> Line:
        line = Line()
        line.room.set()
        line.say(hello or HELLO_OF[node])
        self.tasks.append(asyncio.create_task(self.dispatcher.serve(node, line, line.read(), "192.0.2.1")))
        await eventually(lambda: line.revision > 0)
        return line

    async def put(self, *values: Any) -> None:
        def write(tx: Transaction) -> None:
            for value in values:
                tx.put(value)

        await self.tables.update(write)

    def node(self, node: NodeID) -> Node:
        found = self.tables.view.get(Node, node)
        assert found is not None
        return found

    async def level(self, *lines: Line) -> None:
        """Until every line has what the store holds."""
        await eventually(lambda: all(line.revision == self.tables.view.revision for line in lines))

    async def pass_time(self, seconds: int) -> None:
        """In steps that are no jumps."""
        for _ in range(seconds):
            self.clock.advance(1)
            for _ in range(5):
                await asyncio.sleep(0)


@asynccontextmanager
async def rig(directory: Path, *nodes: NodeID) -> AsyncIterator[Rig]:
    store = await SqliteStore.open(directory)
    tables, clock = Tables(store), ManualClock()
    await tables.load()
    dispatcher = Dispatcher(tables, clock)
    made = Rig(tables, clock, dispatcher)
    made.tasks.append(asyncio.create_task(tables.run()))
    await made.put(Cluster(id=ClusterID("c"), spec=SwarmSpec()), *(Node(id=n, spec=NodeSpec()) for n in nodes))
    made.tasks.append(asyncio.create_task(dispatcher.run()))
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await store.close()


def running(identifier: str, node: NodeID, **fields: Any) -> Task:
    made = Task(
        id=TaskID(identifier),
        service_id=ServiceID("s"),
        service_name="web",
        slot=1,
        spec=TaskSpec(),
        node_id=node,
        status=TaskStatus(state=TaskState.RUNNING),
    )
    return msgspec.structs.replace(made, **fields)


def is_released(line: Line, task: str) -> bool:
    """As the last frame about it says."""
    said = [
        item.released
        for frame in line.frames
        if isinstance(frame, Snapshot | Delta)
        for item in (frame.items if isinstance(frame, Snapshot) else frame.changed)
        if isinstance(item, TaskItem) and item.task.id == task
    ]
    return bool(said) and said[-1]


async def test_session_begins_with_welcome_and_snapshot_then_deltas_by_revision(tmp_path: Path) -> None:
    async with rig(tmp_path, N1) as r:
        line = await r.connect(N1)
        assert r.node(N1).state == "ready"
        await r.put(running("t1", N1))
        await r.put(running("t2", N1))
        await r.level(line)
        welcome, snapshot, *deltas = line.frames
        assert isinstance(welcome, Welcome)
        assert welcome.heartbeat == 5.0
        assert isinstance(snapshot, Snapshot)
        at = snapshot.revision
        for delta in deltas:
            assert isinstance(delta, Delta)
            assert delta.base == at
            at = delta.revision


async def test_slow_agent_skips_revisions_and_holds_up_nobody(tmp_path: Path) -> None:
    async with rig(tmp_path, N1, N2) as r:
        slow, quick = await r.connect(N1), await r.connect(N2)
        slow.room.clear()
        for number in range(10):
            await r.put(running(f"a{number}", N1), running(f"b{number}", N2))
        await r.level(quick)
        before = len(slow.frames)
        slow.room.set()
        await r.level(slow)
        assert len(slow.frames) - before <= 2  # the one that waited, and the rest in one


async def test_task_is_released_once_every_live_node_acknowledged(tmp_path: Path) -> None:
    async with rig(tmp_path, N1, N2) as r:
        one, two = await r.connect(N1), await r.connect(N2)
        await r.put(running("t1", N1))
        await r.put(running("t1", N1, desired=TaskState.SHUTDOWN, version=r.tables.view.revision))
        await r.level(one)
        one.say(Ack(revision=one.revision))
        two.say(Ack(revision=two.revision, pending=1))
        await r.pass_time(1)
        assert not is_released(one, "t1")  # something of it is pending on n2
        two.say(Ack(revision=two.revision))
        await eventually(lambda: is_released(one, "t1"))


async def test_task_that_never_served_is_released_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path, N1, N2) as r:
        one, _ = await r.connect(N1), await r.connect(N2)
        starting = TaskStatus(state=TaskState.STARTING)
        await r.put(running("t1", N1, desired=TaskState.SHUTDOWN, status=starting))
        await eventually(lambda: is_released(one, "t1"))


async def test_silent_node_delays_a_release_only_so_long(tmp_path: Path) -> None:
    async with rig(tmp_path, N1, N2) as r:
        one, two = await r.connect(N1), await r.connect(N2)
        await two.close(1000, "")  # n2 is still ready: it forwards as before
        await r.put(running("t1", N1, desired=TaskState.SHUTDOWN))
        await r.level(one)
        one.say(Ack(revision=one.revision))
        await r.pass_time(int(RELEASE_TIMEOUT) - 1)
        assert not is_released(one, "t1")
        await r.pass_time(2)
        await eventually(lambda: is_released(one, "t1"))


async def test_applied_waits_for_every_live_node(tmp_path: Path) -> None:
    async with rig(tmp_path, N1, N2) as r:
        one, two = await r.connect(N1), await r.connect(N2)
        await r.put(running("t1", N1))
        await r.level(one)
        waiting = asyncio.create_task(r.dispatcher.applied(r.tables.view.revision))
        one.say(Ack(revision=one.revision))
        await r.pass_time(1)
        assert not waiting.done()
        two.say(Ack(revision=two.revision))  # an older revision, but nothing in the newer one concerns it
        await asyncio.wait_for(waiting, 2)


async def test_node_is_down_after_three_missed_heartbeats_and_ready_when_back(tmp_path: Path) -> None:
    async with rig(tmp_path, N1, N2) as r:
        one, two = await r.connect(N1), await r.connect(N2)
        for _ in range(4):
            await r.pass_time(5)
            one.say(Heartbeat())
        await eventually(lambda: r.node(N2).state == "down")
        assert (r.node(N1).state, r.node(N2).message) == ("ready", "heartbeat failure")
        assert (one.closed, two.closed) == (None, 4408)
        assert r.node(N2).lost_at == r.node(N2).updated + 24 * 3600
        await r.connect(N2)
        assert (r.node(N2).state, r.node(N2).message, r.node(N2).lost_at) == ("ready", "", 0.0)


async def test_broken_session_keeps_the_node_ready_for_its_grace(tmp_path: Path) -> None:
    async with rig(tmp_path, N1) as r:
        line = await r.connect(N1)
        await line.close(1000, "")
        await r.pass_time(13)
        assert r.node(N1).state == "ready"
        await r.pass_time(5)
        await eventually(lambda: r.node(N1).state == "down")


async def test_machine_set_up_anew_takes_its_address_from_the_old_node(tmp_path: Path) -> None:
    async with rig(tmp_path, N1, N2) as r:
        line = await r.connect(N1)
        second = Line()
        second.say(HELLO)
        with pytest.raises(Conflict, match="address of its own"):
            await r.dispatcher.serve(N2, second, second.read(), "192.0.2.2")
        await line.close(1000, "")
        await r.pass_time(1)
        await r.connect(N2, HELLO)
        assert (r.node(N1).state, r.node(N1).vtep) == ("down", None)
        assert (r.node(N2).state, r.node(N2).vtep) == ("ready", HELLO.vtep)


async def test_restarted_manager_gives_nodes_a_grace(tmp_path: Path) -> None:
    async with rig(tmp_path, N1) as r:
        await r.connect(N1)
    async with rig(tmp_path) as r:
        await r.pass_time(13)
        assert r.node(N1).state == "ready"
        await r.pass_time(5)
        await eventually(lambda: r.node(N1).state == "down")


async def test_clock_that_jumps_takes_nobody_down() -> None:
    clock, down = ManualClock(), list[NodeID]()
    monitor = Monitor(clock, lambda: 5.0, down.append)
    running_monitor = asyncio.create_task(monitor.run())
    try:
        monitor.heard(N1)
        await asyncio.sleep(0)
        clock.advance(3600)
        for _ in range(14):
            await asyncio.sleep(0)
            clock.advance(1)
        await asyncio.sleep(0)
        assert down == []
        for _ in range(3):
            clock.advance(1)
            await asyncio.sleep(0)
        assert down == [N1]
    finally:
        running_monitor.cancel()
        await asyncio.gather(running_monitor, return_exceptions=True)


async def test_reports_survive_a_store_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, N1) as r:
        await r.put(running("t1", N1, status=TaskStatus(state=TaskState.ASSIGNED)))
        inbox, update = Inbox(r.tables, r.clock), r.tables.update

        async def refuse(change: Any) -> None:
            raise Unavailable("the disk is full")

        r.tasks.append(asyncio.create_task(inbox.run()))
        monkeypatch.setattr(r.tables, "update", refuse)
        inbox.reports(N1, [TaskReport(task=TaskID("t1"), status=TaskStatus(state=TaskState.STARTING))])
        inbox.news(N1, NodeNews(state="ready", description=NodeDescription(hostname="kept")))
        await inbox.flushed()
        inbox.reports(N1, [TaskReport(task=TaskID("t1"), status=TaskStatus(state=TaskState.RUNNING))])
        inbox.news(N1, NodeNews(state="down"))
        monkeypatch.setattr(r.tables, "update", update)
        await r.pass_time(2)
        await inbox.flushed()
        task = r.tables.view.get(Task, "t1")
        assert task is not None
        assert task.status.state == TaskState.RUNNING
        assert (r.node(N1).state, r.node(N1).description.hostname) == ("down", "kept")
