"""Who looks, and what they see: nodes are listened to only while somebody looks."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import msgspec
import pytest

from hivemesh.clock import SystemClock
from hivemesh.control.manager import Manager
from hivemesh.model.errors import Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.web import hub as hubs
from hivemesh.web.hub import Hub
from hivemesh.wire.feed import Entry, Unheard
from hivemesh.wire.topology import Meter, Picture, Pulse
from sights import Swarm, a_swarm, sights


class FakeManager:
    """Tables, feeds and a leader; nodes speak when a test says so."""

    def __init__(self, world: Swarm) -> None:
        self.world = world
        self.tables = self
        self.feeds = self
        self.leader = world.node("n1").id
        self.told: asyncio.Queue[Entry] = asyncio.Queue()
        self.listeners = self.most = 0
        self._wake = asyncio.Event()

    @property
    def view(self) -> Any:
        return self.world.view

    async def changed(self, after: int) -> int:
        while self.view.revision <= after:
            self._wake.clear()
            await self._wake.wait()
        return int(self.view.revision)

    def woken(self) -> None:
        self._wake.set()

    async def read(self, nodes: object, what: str) -> AsyncGenerator[Entry, None]:
        assert what == "picture"
        self.listeners += 1
        self.most = max(self.most, self.listeners)
        try:
            while True:
                yield await self.told.get()
        finally:
            self.listeners -= 1

    def sight(self) -> None:
        for seen in sights(self.view).values():
            assert seen.sight is not None
            self.told.put_nowait(seen.sight)

    def meter(self, node: str, at: float, carried: int, **more: Any) -> None:
        sight = sights(self.view)[self.world.node(node).id].sight
        assert sight is not None
        devices = sum(len(space.devices) for space in sight.spaces)
        self.told.put_nowait(
            Meter(node=node, node_id=sight.node_id, at=at, carried=(carried, 2 * carried) * devices, **more)
        )


@pytest.fixture
async def manager() -> FakeManager:
    return FakeManager(a_swarm())


@pytest.fixture
async def hub(manager: FakeManager) -> AsyncIterator[Hub]:
    hub = Hub(lambda: cast(Manager, manager), SystemClock())
    yield hub
    await hub.close()


async def following(
    states: AsyncGenerator[Picture | Pulse, None], kind: type, wanted: Callable[[Any], object] = lambda state: True
) -> Any:
    """The next state of a kind that is as wanted."""
    async with asyncio.timeout(10):
        while True:
            state = await anext(states)
            if isinstance(state, kind) and wanted(state):
                return state


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_one_picture_waits_until_all_nodes_have_told(hub: Hub, manager: FakeManager) -> None:
    asking = asyncio.create_task(hub.picture())
    await asyncio.sleep(0.05)
    assert not asking.done()
    manager.sight()
    async with asyncio.timeout(10):
        picture = await asking
    assert {item.state for item in picture.items if item.kind == "machine"} == {"good"}
    assert any(item.kind == "device" for item in picture.items)


async def test_node_that_tells_nothing_is_drawn_as_it_is_wanted(
    hub: Hub, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "FIRST_SIGHTS", 0.05)
    picture = await hub.picture()
    assert {item.state for item in picture.items if item.kind == "machine"} == {"warn"}
    assert [item.kind for item in picture.items].count("sandbox") == 4


async def test_follower_gets_a_new_picture_when_the_store_or_a_kernel_changed(hub: Hub, manager: FakeManager) -> None:
    manager.sight()
    await hub.picture()
    async with aclosing(hub.follow()) as states:
        before = await following(states, Picture)
        await following(states, Pulse)
        manager.world.set_spec("n2", availability="drain")
        manager.woken()
        after = await following(states, Picture)
        notes = {item.title: item.note for item in after.items if item.kind == "machine"}
        assert "drain" in notes["n2"]
        assert after != before
        manager.told.put_nowait(Unheard(node="n3", reason="its stream broke off"))
        silent = await following(states, Picture)
        machine = next(item for item in silent.items if item.title == "n3")
        assert (machine.state, "its stream broke off" in machine.note) == ("warn", True)
        manager.sight()
        heard = await following(states, Picture, lambda picture: "broke off" not in str(picture.items))
        assert next(item.state for item in heard.items if item.title == "n3") == "good"


async def test_pulse_has_rates_of_devices_and_health_of_nodes(hub: Hub, manager: FakeManager) -> None:
    manager.sight()
    await hub.picture()
    manager.meter("n1", 100.0, 1000, repairs=2, lag=0.004)
    manager.meter("n1", 102.0, 5000, repairs=3, lag=0.004)
    async with aclosing(hub.follow()) as states:
        await following(states, Picture)
        pulse = await following(states, Pulse, lambda pulse: pulse.rates)
    first = manager.world.node("n1").id
    assert pulse.rates[f"tunnel/{first}/"] == (2000.0, 4000.0)
    assert all(link.split("/")[1] == first for link in pulse.rates)
    health = pulse.nodes[first]
    assert (health.repairs, health.lag, health.received, health.sent) == (3, 0.004, 2000.0, 4000.0)
    assert msgspec.json.decode(msgspec.json.encode(pulse), type=Pulse) == pulse


async def test_counters_of_devices_made_anew_give_no_rate(hub: Hub, manager: FakeManager) -> None:
    manager.sight()
    await hub.picture()
    manager.meter("n1", 100.0, 9000)
    manager.meter("n1", 101.0, 10)
    await until(manager.told.empty)
    async with aclosing(hub.follow()) as states:
        assert (await following(states, Pulse)).rates == {}


async def test_nodes_are_listened_to_once_and_no_longer_than_somebody_looks(
    hub: Hub, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "LINGER", 0.0)
    manager.sight()
    async with aclosing(hub.follow()) as first, aclosing(hub.follow()) as second:
        await following(first, Picture)
        await following(second, Picture)
        await until(lambda: manager.listeners > 0)
        assert manager.most == 1
    await until(lambda: manager.listeners == 0)
    asking = asyncio.create_task(hub.picture())  # and again, when somebody comes back
    await until(lambda: manager.listeners > 0)
    manager.sight()
    await asking
    assert manager.most == 1


async def test_manager_that_began_anew_is_listened_to_instead_of_the_one_before() -> None:
    first, second = FakeManager(a_swarm()), FakeManager(a_swarm())
    now = first
    hub = Hub(lambda: cast(Manager, now), SystemClock())
    first.sight()
    await hub.picture()
    now = second
    second.sight()
    picture = await hub.picture()
    assert {item.state for item in picture.items if item.kind == "machine"} == {"good"}
    assert (first.listeners, second.listeners) == (0, 1)
    await hub.close()


async def test_node_that_is_no_manager_says_where_to_ask() -> None:
    hub = Hub(lambda: None, SystemClock())
    with pytest.raises(Unavailable, match="on one of them"):
        await hub.picture()
    with pytest.raises(Unavailable, match="on one of them"):
        await anext(hub.follow([NodeID("n")]))
