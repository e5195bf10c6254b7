"""This node's part in traces: it asks about ways that begin here, and answers managers about those that end here."""

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Iterable

import msgspec

from hivemesh.agent import join as membership
from hivemesh.agent.identity import Identity
from hivemesh.agent.worker import Worker
from hivemesh.control.manager import Manager
from hivemesh.kernel.linux import Linux
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError, Invalid, NotFound, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.model.task import Task
from hivemesh.trace import tracer
from hivemesh.trace.question import named, split
from hivemesh.trace.tracer import Here
from hivemesh.trace.watching import LIFE, Watching
from hivemesh.wire.control import ExamineWanted, TraceWanted
from hivemesh.wire.trace import Answered, Examination, Examined, ExamineRequest, Question, Trace, Traced

log = logging.getLogger("hivemesh.trace")

MOST = 16
"""Questions of managers that are looked into at a time; who asks more waits in vain, and says so."""
PATIENCE = 3.0
"""Seconds for the other nodes' hops; then the trace says that they are missing."""
ATTEMPTS = 3
"""Looks at most, while plans change under them: what is just being made would look broken."""


def origin(tasks: Iterable[Task], nodes: Iterable[Node], question: Question) -> tuple[NodeID | None, Question]:
    """The node that is asked first, and the question as that node is asked; None: this one, or nobody knows.

    It is the one where a way begins, but from outside, which an address or a node as source means too, the one that the
    target says: `n3:8080`, or an address of a node. Raises `Invalid` for what may be several, or what no node asks.
    """
    task = named(tasks, question.source) if question.source else None
    if task is not None:
        return task.node_id or None, question
    nodes = list(nodes)
    sender = _node(nodes, question.source)
    if question.source and sender is None and not _is_address(question.source):
        return None, question
    host, port = split(question.target)
    target = _node(nodes, host) if host or sender is None else sender
    if sender is not None and target is None:
        raise Invalid(
            f"{question.target} is no port of a node: what a node asks for itself goes to published ports only, "
            "NODE:PORT or :PORT; overlay networks are the tasks', so trace from one of those"
        )
    question = msgspec.structs.replace(question, source="")
    if target is None:
        return None, question
    if sender is not None and sender.id != target.id:
        question = msgspec.structs.replace(question, sender=sender.vtep)
    return target.id, msgspec.structs.replace(question, target=f":{port}" if port else question.target)


def _node(nodes: Iterable[Node], text: str) -> Node | None:
    """By id, host name or address."""
    text = text.strip("[]")
    known = (n for n in nodes if text and text in (n.id, n.description.hostname, n.addr, str(n.vtep)))
    return next(known, None)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


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
        self._watching = Watching()

    def heed(self, frame: ExamineWanted | TraceWanted, manager: str) -> None:
        """Answer whoever wants it; `manager` (host:port) told us."""
        if len(self._answering) < MOST:
            manager = frame.manager or manager
            answer = (
                self._answer_trace(frame, manager) if isinstance(frame, TraceWanted) else self._answer(frame, manager)
            )
            answering = asyncio.create_task(answer, name="examine")
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def close(self) -> None:
        for answering in self._answering:
            answering.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        self._watching.close()

    def _here(self) -> Here:
        return Here(node=self._node, linux=self._linux, plans=self._worker().plans, watching=self._watching)

    async def _answer(self, frame: ExamineWanted, manager: str) -> None:
        try:
            for _ in range(ATTEMPTS):
                here = self._here()
                examined = await asyncio.to_thread(tracer.examine, here, frame.examination)
                if self._worker().plans == here.plans or frame.examination.part != "look":
                    break
            if frame.examination.watch is not None:
                asyncio.get_running_loop().call_later(LIFE + 1, self._watching.tidy)
            await membership.tell_examined(self._identity(), manager, Answered(id=frame.id, examined=examined))
        except (HivemeshError, OSError) as error:
            log.info("cannot tell the manager at %s what lies on a packet's way: %s", manager, error)

    async def _answer_trace(self, frame: TraceWanted, manager: str) -> None:
        try:
            traced = Traced(id=frame.id, trace=await self.trace(frame.question))
        except Invalid as error:
            traced = Traced(id=frame.id, kind="invalid", refusal=str(error))
        except NotFound as error:
            traced = Traced(id=frame.id, kind="not found", refusal=str(error))
        except (HivemeshError, OSError) as error:
            traced = Traced(id=frame.id, refusal=str(error))
        try:
            await membership.tell_traced(self._identity(), manager, traced)
        except (HivemeshError, OSError) as error:
            log.info("cannot tell the manager at %s of a packet's way: %s", manager, error)

    async def trace(self, question: Question) -> Trace:
        """Raises `Invalid` or `NotFound` for what leads nowhere, `Unavailable` while there is no view."""
        worker, vtep = self._worker(), self._identity().facts.vtep
        if question.source == self._node:
            question = msgspec.structs.replace(question, source="")
        if worker.parts is None:
            raise Unavailable("this node knows nothing of the swarm's networks yet: no manager has told it")
        for _ in range(ATTEMPTS):
            here = self._here()
            found = await tracer.trace(here, worker.parts, question, vtep, self._elsewhere)
            if worker.plans == here.plans:
                break
        return found

    async def _elsewhere(self, vtep: Address, examination: Examination) -> Examined:
        manager = self._manager()
        if manager is not None and manager.examiner is not None:
            return await manager.examiner.examine(vtep, examination)
        try:
            async with asyncio.timeout(PATIENCE):
                return await membership.examine(self._identity(), ExamineRequest(vtep=vtep, examination=examination))
        except TimeoutError:
            raise Unavailable(f"no manager could ask the node at {vtep} in {PATIENCE:g} s") from None
