"""Parts of packets' ways that lie on other nodes: a manager asks the node, and hands on what it found."""

import asyncio
import secrets

from hivemesh.control.logs import Tell
from hivemesh.model.addr import Address
from hivemesh.model.errors import Forbidden, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.store.tables import Tables
from hivemesh.wire.control import ExamineWanted
from hivemesh.wire.trace import Examined, Leg

PATIENCE = 2.5
"""Seconds a node has to look at its own kernel: it takes milliseconds, and a trace should not take five seconds."""


class Examiner:
    """All questions that wait at this manager."""

    def __init__(self, tables: Tables, tell: Tell) -> None:
        self._tables = tables
        self._tell = tell
        self._waiting: dict[str, tuple[NodeID, asyncio.Future[Examined]]] = {}

    async def examine(self, vtep: Address, leg: Leg) -> Examined:
        """What the node with that VTEP finds. Raises `Unavailable` when it cannot be asked."""
        node = next((n for n in self._tables.view.all(Node) if n.vtep == vtep), None)
        if node is None:
            raise Unavailable(f"no node of the swarm has the address {vtep}: frames sent there are lost")
        name = node.description.hostname or node.id
        identifier = secrets.token_hex(8)
        answer: asyncio.Future[Examined] = asyncio.get_running_loop().create_future()
        self._waiting[identifier] = node.id, answer
        try:
            if not await self._tell(node.id, ExamineWanted(id=identifier, leg=leg)):
                raise Unavailable(f"node {name} ({vtep}) has no session with the managers: it is down or cut off")
            async with asyncio.timeout(PATIENCE):
                return await answer
        except TimeoutError:
            raise Unavailable(f"node {name} ({vtep}) did not say in {PATIENCE:g} s what it sees") from None
        finally:
            del self._waiting[identifier]

    def answered(self, identifier: str, node: NodeID, examined: Examined) -> None:
        """What a node found. Raises `Forbidden` when it was not asked, or too late."""
        asked, answer = self._waiting.get(identifier, (None, None))
        if answer is None or asked != node:
            raise Forbidden(f"nobody asked this node for {identifier}")
        if not answer.done():
            answer.set_result(examined)
