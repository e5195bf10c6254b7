"""Traces that a manager asks of the node where their way begins."""

import asyncio
import ipaddress
from typing import cast

import pytest
from world import World

from hivemesh.control.examiner import Examiner
from hivemesh.model.errors import Forbidden, HivemeshError, Invalid, NotFound, Unavailable
from hivemesh.model.ids import NetworkID, NodeID
from hivemesh.store.tables import Tables
from hivemesh.wire.control import FromManager, TraceWanted
from hivemesh.wire.trace import Examination, Leg, Question, Trace, Traced

LEG = Leg(
    network=NetworkID("back"), source=ipaddress.ip_address("10.0.1.9"), destination=ipaddress.ip_address("10.0.1.22"),
    peer=ipaddress.ip_address("198.51.100.13"),
)  # fmt: skip
QUESTION = Question(source="web.1", target="db")


class Asking:
    """An examiner, and the node that it asks."""

    def __init__(self, *, connected: bool = True, silence: float | None = None) -> None:
        self.world = World()
        self.connected = connected
        self.asked: asyncio.Queue[tuple[NodeID, TraceWanted]] = asyncio.Queue()
        self.examiner = Examiner(cast(Tables, self.world), self._tell, lambda node: silence)

    async def _tell(self, node: NodeID, frame: FromManager) -> bool:
        if isinstance(frame, TraceWanted):
            self.asked.put_nowait((node, frame))
        return self.connected


async def test_trace_is_what_the_node_found() -> None:
    asking = Asking()
    node = asking.world.node("n2")
    waiting = asyncio.create_task(asking.examiner.trace(node, QUESTION))
    asked, frame = await asking.asked.get()
    assert (asked, frame.question) == (node.id, QUESTION)
    found = Trace(source="web.1", target="db", protocol="tcp")
    with pytest.raises(Forbidden):  # another node cannot answer for it
        asking.examiner.traced(asking.world.node("n3").id, Traced(id=frame.id, trace=found))
    asking.examiner.traced(node.id, Traced(id=frame.id, trace=found))
    assert await waiting == found


@pytest.mark.parametrize(
    ("kind", "error"), [("invalid", Invalid), ("not found", NotFound), ("unavailable", Unavailable)]
)
async def test_refusal_of_the_node_is_raised_in_its_words(kind: str, error: type[HivemeshError]) -> None:
    asking = Asking()
    node = asking.world.node("n1")
    waiting = asyncio.create_task(asking.examiner.trace(node, QUESTION))
    _, frame = await asking.asked.get()
    asking.examiner.traced(node.id, Traced(id=frame.id, kind=kind, refusal="nobody is called db"))  # type: ignore[arg-type]
    with pytest.raises(error, match="nobody is called db"):
        await waiting


async def test_node_without_a_session_cannot_be_asked() -> None:
    asking = Asking(connected=False)
    with pytest.raises(Unavailable, match=r"n1.*no session"):
        await asking.examiner.trace(asking.world.node("n1"), QUESTION)


@pytest.mark.parametrize(
    ("silence", "state", "said"),
    [
        (12.2, "ready", "has not been heard of for 12 s"),
        (40.0, "down", "has not been heard of for 40 s, and counts as down: heartbeat failure"),
        (None, "ready", "does not answer"),
    ],
)
async def test_node_that_cannot_be_asked_is_a_finding_of_the_way(silence: float | None, state: str, said: str) -> None:
    asking = Asking(connected=False, silence=silence)
    asking.world.set_node("n3", vtep=LEG.peer, state=state, message="heartbeat failure")
    (hop,) = (await asking.examiner.examine(LEG.peer, Examination(leg=LEG))).hops
    assert hop.finding is not None
    assert (hop.node, hop.finding.kernel) == ("n3", said)
    with pytest.raises(Unavailable):
        await asking.examiner.examine(LEG.peer, Examination(part="tell"))
