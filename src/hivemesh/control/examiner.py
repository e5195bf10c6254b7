"""Parts of packets' ways that lie on other nodes: a manager asks the node, and hands on what it found."""

from collections.abc import Callable

from hivemesh.control.errands import Errands
from hivemesh.control.logs import Tell
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError, Invalid, NotFound, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.store.tables import Tables
from hivemesh.wire.control import ExamineWanted, TraceWanted
from hivemesh.wire.trace import Examination, Examined, Fact, Hop, Question, Trace, Traced

PATIENCE = 2.5
"""Seconds a node has to look at its own kernel: it takes milliseconds, and a trace should not take five seconds."""

TRACE_PATIENCE = 15.0
"""Seconds a node has for a whole trace: it asks others in its turn, up to five times, and says itself who is silent."""

ERRORS: dict[str, type[HivemeshError]] = {"invalid": Invalid, "not found": NotFound, "unavailable": Unavailable}


class Examiner:
    """All questions that wait at this manager."""

    def __init__(
        self, tables: Tables, tell: Tell, silence: Callable[[NodeID], float | None] = lambda node: None
    ) -> None:
        self._tables = tables
        self._silence = silence
        self._errands = Errands[Examined](tell, PATIENCE)
        self._traces = Errands[Traced](tell, TRACE_PATIENCE)

    async def examine(self, vtep: Address, examination: Examination) -> Examined:
        """What the node with that VTEP finds; of one that does not answer, that.

        Raises `Unavailable` when there is no such node, or it was only asked to tell.
        """
        node = next((n for n in self._tables.view.all(Node) if n.vtep == vtep), None)
        if node is None:
            raise Unavailable(f"no node of the swarm has the address {vtep}: frames sent there are lost")
        try:
            return await self._errands.ask(
                node, lambda identifier: ExamineWanted(id=identifier, examination=examination)
            )
        except Unavailable:
            if examination.part != "look":
                raise
            return Examined(hops=(self._absent(node),))

    def _absent(self, node: Node) -> Hop:
        name, silence = node.description.hostname or node.id, self._silence(node.id)
        text = (
            f"has not been heard of for {silence:.0f} s" if silence is not None and silence >= 1 else "does not answer"
        )
        if node.state == "down":
            text += f", and counts as down: {node.message or 'no heartbeat'}"
        fact = Fact(
            what=f"node {name}", plan="answers", kernel=text, agrees=False, proof=f"hivemesh node inspect {name}",
            cause="the machine is off, its daemon does not run, or it is cut off: packets to its tasks may be lost",
        )  # fmt: skip
        return Hop(node=name, namespace="", title=f"the node at {node.vtep}", facts=(fact,))

    def answered(self, identifier: str, node: NodeID, examined: Examined) -> None:
        """What a node found. Raises `Forbidden` when it was not asked, or too late."""
        self._errands.answered(identifier, node, examined)

    async def trace(self, node: Node, question: Question) -> Trace:
        """A way that begins at `node`. Raises what that node would: `Invalid`, `NotFound`, `Unavailable`."""
        told = await self._traces.ask(node, lambda identifier: TraceWanted(id=identifier, question=question))
        if told.trace is None:
            raise ERRORS[told.kind](told.refusal)
        return told.trace

    def traced(self, node: NodeID, traced: Traced) -> None:
        """What a node found. Raises `Forbidden` when it was not asked, or too late."""
        self._traces.answered(traced.id, node, traced)
