"""What agents tell the manager, written to the store in as few commits as possible.

What arrives while a commit runs forms the next one; per task and node only the latest counts. When the store refuses
(a full disk), nothing is lost: it is tried again until it works.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from hivemesh.clock import Clock
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError
from hivemesh.model.ids import NodeID, TaskID
from hivemesh.model.node import PARTING, Node, NodeDescription, NodeState
from hivemesh.model.task import Task, TaskStatus
from hivemesh.store.tables import Tables, Transaction
from hivemesh.wire.control import TaskReport

log = logging.getLogger("hivemesh.dispatcher")

RETRY = 1.0
"""Seconds between attempts while the store refuses."""

MAX_WORDS = 4096
"""Characters of an error that are kept: a node says it, the store of every manager holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNews:
    """What is known anew of a node; None leaves the field as it is."""

    state: NodeState
    message: str = ""
    description: NodeDescription | None = None
    vtep: Address | None = None
    addr: str = ""  # taken when the node has none


class Inbox:
    """Collects reports and node states; the only writer of `Task.status` after assignment and of `Node.state`."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock
        self._reports: dict[TaskID, tuple[NodeID, TaskStatus]] = {}
        self._nodes: dict[NodeID, NodeNews] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()

    def reports(self, node: NodeID, reports: Iterable[TaskReport]) -> None:
        """Statuses of tasks of `node`."""
        for report in reports:
            self._put_report(report.task, node, _bounded(report.status))
        self._wake.set()

    def news(self, node: NodeID, news: NodeNews) -> None:
        """A node's state, and with it perhaps its facts."""
        self._put_news(node, news)
        self._wake.set()

    async def flushed(self) -> None:
        """Until everything handed in so far was committed, or the store refused it once."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wake.set()  # what we wait for may be in a commit already: the next round comes after it
        await future

    async def run(self) -> None:
        """Commit what comes in."""
        refused = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            reports, self._reports = self._reports, {}
            nodes, self._nodes = self._nodes, {}
            waiting, self._waiting = self._waiting, []
            try:
                await self._tables.update(lambda tx, r=reports, n=nodes: self._write(tx, r, n))  # type: ignore[misc]
            except HivemeshError as error:
                if not refused:
                    log.error("cannot record what agents report, trying on: %s", error)
                refused = True
                self._put_back(reports, nodes)
            else:
                if refused:
                    log.info("agents' reports are recorded again")
                refused = False
            finally:
                for future in waiting:
                    if not future.done():
                        future.set_result(None)
            if refused:
                await self._clock.sleep(RETRY)
                self._wake.set()

    def _write(
        self, tx: Transaction, reports: dict[TaskID, tuple[NodeID, TaskStatus]], nodes: dict[NodeID, NodeNews]
    ) -> None:
        now = self._clock.now()
        for task_id, (node_id, status) in reports.items():
            task = tx.get(Task, task_id)
            if task is None or task.node_id != node_id:
                continue
            changed = task.with_report(status)
            if changed != task:
                tx.put(msgspec.structs.replace(changed, updated=now))
        for node_id, news in nodes.items():
            node = tx.get(Node, node_id)
            if node is None:
                continue
            if news.state == "down":
                told = node.gone_down(news.message, now) if node.state != "down" else node
            else:
                told = msgspec.structs.replace(node, state=news.state, message=news.message, lost_at=0.0)
            told = msgspec.structs.replace(
                told,
                description=news.description or node.description,
                vtep=news.vtep or node.vtep,
                addr=node.addr or news.addr,
            )
            if told != node:
                tx.put(msgspec.structs.replace(told, updated=now))
            if news.vtep is not None and told.vtep != node.vtep:
                _take_over(tx, told, now)

    def _put_report(self, task: TaskID, node: NodeID, status: TaskStatus) -> None:
        known = self._reports.get(task)
        if known is None or known[0] != node or status.state >= known[1].state:
            self._reports[task] = (node, status)

    def _put_news(self, node: NodeID, news: NodeNews) -> None:
        known = self._nodes.get(node)
        if known is not None and news.description is None:
            news = NodeNews(
                state=news.state,
                message=news.message,
                description=known.description,
                vtep=known.vtep,
                addr=known.addr,
            )
        self._nodes[node] = news

    def _put_back(self, reports: dict[TaskID, tuple[NodeID, TaskStatus]], nodes: dict[NodeID, NodeNews]) -> None:
        """Under what has come in meanwhile."""
        newer_reports, self._reports = self._reports, reports
        newer_nodes, self._nodes = self._nodes, nodes
        for task, (node, status) in newer_reports.items():
            self._put_report(task, node, status)
        for node, news in newer_nodes.items():
            self._put_news(node, news)


def _take_over(tx: Transaction, node: Node, now: float) -> None:
    """A machine that was set up anew has the address it had before as another node: that node is gone."""
    for other in list(tx.all(Node)):
        if other.id != node.id and other.vtep == node.vtep:
            message = f"its data path address {node.vtep} belongs to node {node.id} now"
            tx.put(msgspec.structs.replace(other.gone_down(message, now, PARTING), vtep=None, updated=now))


def _bounded(status: TaskStatus) -> TaskStatus:
    if len(status.err) <= MAX_WORDS and len(status.message) <= MAX_WORDS:
        return status
    return msgspec.structs.replace(status, err=status.err[:MAX_WORDS], message=status.message[:MAX_WORDS])
