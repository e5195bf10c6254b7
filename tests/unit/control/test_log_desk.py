"""Reading the output of tasks: which nodes are asked for what, and what becomes of their answers."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from world import World, spec

from hivemesh.clock import SystemClock
from hivemesh.control.logs import LogDesk
from hivemesh.model.errors import Forbidden
from hivemesh.model.ids import NodeID
from hivemesh.model.task import Task, TaskState
from hivemesh.wire.control import FromManager, LogsUnwanted, LogsWanted
from hivemesh.wire.framing import framed
from hivemesh.wire.logs import Entry, LogLine, LogProblem, LogQuery


class Agents:
    """Nodes that answer with one line per task, unless they are away."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.away: set[NodeID] = set()
        self.told: list[tuple[NodeID, FromManager]] = []
        self.desk = LogDesk(self, self.tell, SystemClock())  # type: ignore[arg-type]
        self.posts: list[asyncio.Task[None]] = []

    # what the desk needs of tables

    @property
    def view(self) -> object:
        return self.world.view

    async def changed(self, revision: int) -> int:
        while self.world.view.revision <= revision:  # noqa: ASYNC110 - the world is turned by hand
            await asyncio.sleep(0.005)
        return self.world.view.revision

    async def tell(self, node: NodeID, frame: FromManager) -> bool:
        self.told.append((node, frame))
        if node in self.away:
            return False
        if isinstance(frame, LogsWanted):
            lines = [LogLine(task, 1, 0, f"{task} says hello\n".encode()) for task in frame.tasks]
            self.posts.append(asyncio.create_task(self.desk.receive(frame.id, node, stream(lines))))
        return True


async def stream(entries: Iterable[Entry]) -> AsyncIterator[bytes]:
    for entry in entries:
        yield framed(entry)


def running(world: World, replicas: int) -> list[Task]:
    world.create(spec(replicas=replicas))
    for task in world.tasks("web"):
        world.report(task, TaskState.RUNNING, container_id=f"c{task.slot}")
    return world.tasks("web")


async def collect(agents: Agents, query: LogQuery) -> list[Entry]:
    return [entry async for entry in agents.desk.read(lambda: agents.world.tasks("web"), query)]


async def test_each_node_is_asked_once_for_all_its_tasks() -> None:
    world = World(2)
    tasks = running(world, 4)
    agents = Agents(world)
    found = await collect(agents, LogQuery())
    assert {entry.task for entry in found} == {task.id for task in tasks}
    asked = [frame for _, frame in agents.told if isinstance(frame, LogsWanted)]
    assert sorted(len(frame.tasks) for frame in asked) == [2, 2]


async def test_a_node_that_is_away_is_named_as_a_problem_of_its_tasks() -> None:
    world = World(2)
    tasks = running(world, 2)
    agents = Agents(world)
    agents.away = {NodeID(world.node("n2").id)}
    found = await collect(agents, LogQuery())
    lost = {task.id for task in tasks if task.node_id in agents.away}
    assert {entry.task for entry in found if isinstance(entry, LogProblem)} == lost
    assert len(found) == 2


async def test_following_takes_in_tasks_that_begin_later_and_leaving_tells_the_nodes() -> None:
    world = World(2)
    running(world, 1)
    agents = Agents(world)
    seen: list[Entry] = []

    async def follow() -> None:
        async for entry in agents.desk.read(lambda: world.tasks("web"), LogQuery(follow=True)):
            seen.append(entry)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    world.update("web", spec(replicas=2))
    world.report(world.tasks("web")[1], TaskState.RUNNING, container_id="c2")
    async with asyncio.timeout(5):
        while len(seen) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert {entry.task for entry in seen} == {task.id for task in world.tasks("web")}


async def test_a_reader_that_leaves_ends_what_it_asked_for() -> None:
    world = World(1)
    running(world, 1)
    agents = Agents(world)
    gate = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield framed(LogLine(world.tasks("web")[0].id, 1, 0, b"one\n"))
        await gate.wait()

    async def tell(node: NodeID, frame: FromManager) -> bool:
        agents.told.append((node, frame))
        if isinstance(frame, LogsWanted):
            agents.posts.append(asyncio.create_task(agents.desk.receive(frame.id, node, endless())))
        return True

    agents.desk = LogDesk(agents, tell, SystemClock())  # type: ignore[arg-type]
    reading = agents.desk.read(lambda: world.tasks("web"), LogQuery(follow=True))
    assert isinstance(await anext(reading), LogLine)
    await reading.aclose()  # type: ignore[attr-defined]
    assert isinstance(agents.told[-1][1], LogsUnwanted)
    gate.set()
    await asyncio.gather(*agents.posts)


async def test_logs_that_nobody_asked_for_are_refused() -> None:
    agents = Agents(World(1))
    with pytest.raises(Forbidden, match="nobody reads logs 7"):
        await agents.desk.receive("7", NodeID("x"), stream([]))
