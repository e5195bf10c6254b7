"""What managers ask agents beside views: a frame goes out over the node's session, the answer comes as a request of the
node's own, with the same id.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Generic, TypeVar

from hivemesh.control.logs import Tell
from hivemesh.model.errors import Forbidden, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.wire.control import FromManager

Answer = TypeVar("Answer")


class Errands(Generic[Answer]):
    """All that wait at this manager for one kind of answer, each for `patience` seconds at most."""

    def __init__(self, tell: Tell, patience: float) -> None:
        self._tell = tell
        self._patience = patience
        self._waiting: dict[str, tuple[NodeID, asyncio.Future[Answer]]] = {}

    async def ask(self, node: Node, frame: Callable[[str], FromManager]) -> Answer:
        """What the node says to the frame made for an id. Raises `Unavailable` when it cannot be asked."""
        name = f"node {node.description.hostname or node.id} ({node.vtep})"
        identifier = secrets.token_hex(8)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[identifier] = node.id, answer
        try:
            if not await self._tell(node.id, frame(identifier)):
                raise Unavailable(f"{name} has no session with the managers: it is down or cut off")
            async with asyncio.timeout(self._patience):
                return await answer
        except TimeoutError:
            raise Unavailable(f"{name} did not say in {self._patience:g} s what it sees") from None
        finally:
            del self._waiting[identifier]

    def answered(self, identifier: str, node: NodeID, answer: Answer) -> None:
        """What a node found. Raises `Forbidden` when it was not asked, or too late."""
        asked, waiting = self._waiting.get(identifier, (None, None))
        if waiting is None or asked != node:
            raise Forbidden(f"nobody asked this node for {identifier}")
        if not waiting.done():
            waiting.set_result(answer)
