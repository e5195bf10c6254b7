"""This node's part in traces: it asks about ways that begin here, and answers managers about those that end here."""

import asyncio
import logging
from collections.abc import Callable

from hivemesh.agent import join as membership
from hivemesh.agent.identity import Identity
from hivemesh.agent.worker import Worker
from hivemesh.control.manager import Manager
from hivemesh.kernel.linux import Linux
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.trace import tracer
from hivemesh.wire.control import ExamineWanted
from hivemesh.wire.trace import Answered, Examined, ExamineRequest, Leg, Question, Trace

log = logging.getLogger("hivemesh.trace")

MOST = 16
"""Questions of managers that are looked into at a time; who asks more waits in vain, and says so."""
PATIENCE = 3.0
"""Seconds for the other nodes' hops; then the trace says that they are missing."""
ATTEMPTS = 3
"""Looks at most, while plans change under them: what is just being made would look broken."""


class Tracing:
    """`manager` gives this node's, if it is one that answers."""

    def __init__(
        self,
        *,
        node: str,
        linux: Linux,
        worker: Callable[[], Worker],
        identity: Callable[[], Identity],
        manager: Callable[[], Manager | None],
    ) -> None:
        self._node = node
        self._linux = linux
        self._worker = worker
        self._identity = identity
        self._manager = manager
        self._answering: set[asyncio.Task[None]] = set()

    def heed(self, frame: ExamineWanted, manager: str) -> None:
        """Answer whoever wants it; `manager` (host:port) told us."""
        if len(self._answering) < MOST:
            answering = asyncio.create_task(self._answer(frame, frame.manager or manager), name="examine")
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def close(self) -> None:
        for answering in self._answering:
            answering.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _answer(self, frame: ExamineWanted, manager: str) -> None:
        try:
            for _ in range(ATTEMPTS):
                plans = self._worker().plans
                examined = await asyncio.to_thread(tracer.examine, self._linux, self._node, plans, frame.leg)
                if self._worker().plans == plans:
                    break
            await membership.tell_examined(self._identity(), manager, Answered(id=frame.id, examined=examined))
        except (HivemeshError, OSError) as error:
            log.info("cannot tell the manager at %s what lies on a packet's way: %s", manager, error)

    async def trace(self, question: Question) -> Trace:
        """Raises `Invalid` or `NotFound` for what leads nowhere, `Unavailable` while there is no view."""
        worker, vtep = self._worker(), self._identity().facts.vtep
        if worker.parts is None:
            raise Unavailable("this node knows nothing of the swarm's networks yet: no manager has told it")
        for _ in range(ATTEMPTS):
            plans = worker.plans
            found = await tracer.trace(self._linux, self._node, worker.parts, plans, question, vtep, self._elsewhere)
            if worker.plans == plans:
                break
        return found

    async def _elsewhere(self, vtep: Address, leg: Leg) -> Examined:
        manager = self._manager()
        if manager is not None and manager.examiner is not None:
            return await manager.examiner.examine(vtep, leg)
        try:
            async with asyncio.timeout(PATIENCE):
                return await membership.examine(self._identity(), ExamineRequest(vtep=vtep, leg=leg))
        except TimeoutError:
            raise Unavailable(f"no manager could ask the node at {vtep} in {PATIENCE:g} s") from None
