"""The doctor's rounds from a manager: who is asked what, and what becomes of nodes that do not answer."""

import asyncio
from typing import Any

import pytest
from world import World

from hivemesh.clock import SystemClock
from hivemesh.control import inspector
from hivemesh.control.inspector import Inspector
from hivemesh.model.errors import Forbidden, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.wire.control import FromManager, InspectWanted
from hivemesh.wire.doctor import Inspected, Machine, Membership, NodeFacts


class Nodes:
    """Nodes that answer at once, but for those that are away or silent. The store answers, or says `broken`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.view = world.view
        self.store = self
        self.away: set[NodeID] = set()
        self.silent: set[NodeID] = set()
        self.broken = ""
        self.told: list[InspectWanted] = []
        self.ahead = 0.0
        self.inspector = Inspector(self, self.tell, SystemClock())  # type: ignore[arg-type]

    async def snapshot(self, prefix: str) -> None:
        if self.broken:
            raise Unavailable(self.broken)

    async def tell(self, node: NodeID, frame: FromManager) -> bool:
        assert isinstance(frame, InspectWanted)
        self.told.append(frame)
        if node not in self.away | self.silent:
            self.inspector.answered(frame.id, node, self.facts())
        return node not in self.away

    def facts(self) -> NodeFacts:
        membership = Membership(role="worker", certificate=(0.0, 1.0))
        return NodeFacts(machine=Machine(name="n"), membership=membership, time=SystemClock().now() + self.ahead)


def unseen(inspected: Inspected) -> dict[str, str]:
    return {seen.place.name: seen.unseen for seen in inspected.nodes}


async def test_all_ready_nodes_get_one_roster_and_answer() -> None:
    nodes = Nodes(World(3))
    nodes.ahead = 30.0
    inspected = await nodes.inspector.inspect()
    assert unseen(inspected) == {"n1": "", "n2": "", "n3": ""}
    assert all(29 < seen.skew < 31 for seen in inspected.nodes)
    assert len({frame.inspection for frame in nodes.told}) == 1
    roster = nodes.told[0].inspection.places
    assert [place.name for place in roster] == ["n1", "n2", "n3"]
    assert [bool(place.manager) for place in roster] == [True, False, False]
    assert all(place.inside is not None for place in roster)
    assert inspected.store.managers == {"n1": "ready"}


async def test_nodes_that_are_down_or_cut_off_are_told_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(4)
    world.set_node("n2", state="down", message="heartbeat failure")
    nodes = Nodes(world)
    nodes.away, nodes.silent = {world.node("n3").id}, {world.node("n4").id}
    monkeypatch.setattr(inspector, "PATIENCE", 0.05)
    nodes.inspector = Inspector(nodes, nodes.tell, SystemClock())  # type: ignore[arg-type]
    said = unseen(await nodes.inspector.inspect())
    assert said["n1"] == ""
    assert said["n2"] == "it is down: heartbeat failure"
    assert "has no session" in said["n3"]
    assert "did not say in 0.05 s" in said["n4"]
    assert [place.name for place in nodes.told[0].inspection.places] == ["n1", "n3", "n4"]


async def test_those_who_ask_at_the_same_time_share_one_round() -> None:
    nodes = Nodes(World(2))
    first, second = await asyncio.gather(nodes.inspector.inspect(), nodes.inspector.inspect())
    assert first is second
    assert len(nodes.told) == 2
    assert await nodes.inspector.inspect() is not first


async def test_store_that_does_not_answer_is_told_with_the_rest() -> None:
    nodes = Nodes(World(2))
    nodes.broken = "no majority"
    inspected = await nodes.inspector.inspect()
    assert inspected.store.error == "no majority"
    assert unseen(inspected) == {"n1": "", "n2": ""}


async def test_answer_that_nobody_asked_for_is_refused() -> None:
    nodes: Any = Nodes(World(2))
    with pytest.raises(Forbidden):
        nodes.inspector.answered("1234", NodeID("stranger"), nodes.facts())
