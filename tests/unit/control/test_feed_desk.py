"""What nodes tell of their traffic, on its way to a reader at a manager."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

import pytest
from world import World

from hivemesh.clock import ManualClock
from hivemesh.control import feeds
from hivemesh.control.feeds import BEGIN_TIMEOUT, LOOK_PERIOD, FeedDesk
from hivemesh.model.errors import Forbidden
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.wire.control import FeedUnwanted, FeedWanted, FromManager
from hivemesh.wire.feed import Counts, Entry, Lost, Unheard
from hivemesh.wire.framing import framed


def lost(count: int, node: str = "somebody") -> Lost:
    """Any entry that can be told from another."""
    return Lost(node=node, count=count)


class Agents:
    """Nodes that tell what is in `says` when asked, and nothing more until `gate` is open."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = ManualClock()
        self.desk = FeedDesk(self.tell, self.clock)
        self.away: set[NodeID] = set()
        self.deaf: set[NodeID] = set()
        self.told: list[tuple[NodeID, FromManager]] = []
        self.says: dict[NodeID, list[Entry]] = {}
        self.gate = asyncio.Event()
        self.posts: list[asyncio.Task[None]] = []

    def nodes(self) -> list[Node]:
        return list(self.world.view.all(Node))

    async def tell(self, node: NodeID, frame: FromManager) -> bool:
        self.told.append((node, frame))
        if isinstance(frame, FeedWanted) and node not in self.away | self.deaf:
            self.posts.append(asyncio.create_task(self.desk.receive(frame.id, node, self._stream(node))))
        return node not in self.away

    async def _stream(self, node: NodeID) -> AsyncIterator[bytes]:
        for entry in self.says.get(node, ()):
            yield framed(entry)
        await self.gate.wait()

    async def first(self, count: int) -> list[Entry]:
        found: list[Entry] = []
        async with asyncio.timeout(5), aclosing(self.desk.read(self.nodes, "flows")) as entries:
            while len(found) < count:
                found.append(await anext(entries))
        return found


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    agents = Agents(World(2))
    yield agents
    agents.gate.set()
    await asyncio.gather(*agents.posts, return_exceptions=True)


def ids(agents: Agents) -> list[NodeID]:
    return [node.id for node in agents.nodes()]


async def test_all_nodes_are_asked_and_speak_for_themselves(agents: Agents) -> None:
    one, two = ids(agents)
    agents.says = {one: [lost(1)], two: [Counts(at=1.0, node="somebody else")]}
    found = await agents.first(2)
    names = {node.id: node.description.hostname or node.id for node in agents.nodes()}
    assert {entry.node for entry in found} == set(names.values())
    assert {entry.node_id for entry in found if isinstance(entry, Counts)} == {two}


async def test_node_without_a_session_is_named_once_and_asked_again(agents: Agents) -> None:
    one, two = ids(agents)
    agents.away, agents.says = {two}, {one: [lost(1)], two: [lost(2)]}
    async with aclosing(agents.desk.read(agents.nodes, "flows")) as entries, asyncio.timeout(5):
        found = [await anext(entries), await anext(entries)]
        assert [type(entry) for entry in found if isinstance(entry, Unheard)] == [Unheard]
        agents.away = set()
        coming = asyncio.ensure_future(anext(entries))
        await asyncio.sleep(0)
        agents.clock.advance(LOOK_PERIOD)
        assert await coming == lost(2, agents.nodes()[1].description.hostname or two)


async def test_node_whose_session_broke_as_it_was_asked_is_asked_again(agents: Agents) -> None:
    one, two = ids(agents)
    agents.deaf, agents.says = {two}, {one: [lost(1)], two: [lost(2)]}
    async with aclosing(agents.desk.read(agents.nodes, "flows")) as entries, asyncio.timeout(5):
        assert isinstance(await anext(entries), Lost)
        coming = asyncio.ensure_future(anext(entries))
        await asyncio.sleep(0)
        agents.clock.advance(BEGIN_TIMEOUT)
        assert isinstance(await coming, Unheard)
        agents.deaf = set()
        coming = asyncio.ensure_future(anext(entries))
        await asyncio.sleep(0)
        agents.clock.advance(BEGIN_TIMEOUT)
        assert await coming == lost(2, agents.nodes()[1].description.hostname or two)


async def test_reader_that_cannot_keep_up_hears_how_much_it_lost(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "QUEUE", 2)
    one, _ = ids(agents)
    agents.world.set_node("n2", state="down")
    agents.says = {one: [lost(1)] * 10}
    found: list[Entry] = []
    async with aclosing(agents.desk.read(agents.nodes, "flows")) as entries, asyncio.timeout(5):
        found.append(await anext(entries))
        while not agents.posts:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        while not (isinstance(found[-1], Lost) and found[-1].count > 1):
            found.append(await anext(entries))
    shown = [entry for entry in found if isinstance(entry, Lost)]
    assert sum(entry.count for entry in shown) == 10


async def test_reader_that_leaves_ends_what_it_asked_for(agents: Agents) -> None:
    agents.says = {node: [lost(1)] for node in ids(agents)}
    await agents.first(2)
    asked = [frame.id for _, frame in agents.told if isinstance(frame, FeedWanted)]
    assert sorted(frame.id for _, frame in agents.told if isinstance(frame, FeedUnwanted)) == sorted(asked)


async def test_feed_that_nobody_asked_for_is_refused(agents: Agents) -> None:
    with pytest.raises(Forbidden):
        await agents.desk.receive("1", ids(agents)[0], _nothing(()))


async def _nothing(entries: Iterable[bytes]) -> AsyncIterator[bytes]:
    for entry in entries:
        yield entry
