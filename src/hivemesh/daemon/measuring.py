"""This node's counters, and who asks for them: scrapers, `hivemesh top`, and readers of the flow log."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

import hivemesh
from hivemesh.agent.resolver import Resolver
from hivemesh.agent.session import Session
from hivemesh.agent.worker import Worker
from hivemesh.clock import Clock
from hivemesh.control.dispatcher import Dispatcher
from hivemesh.control.manager import Manager
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.meters import FAST, Durations
from hivemesh.metrics import families as f
from hivemesh.metrics.counts import counts_of
from hivemesh.metrics.flowlog import FlowLog
from hivemesh.metrics.naming import short_name
from hivemesh.metrics.reading import host_backends, read
from hivemesh.metrics.tally import Labels, Tally
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.model.task import Task
from hivemesh.wire.feed import COUNTS_PERIOD, Counts, End, Entry, Flow, What

if TYPE_CHECKING:
    from hivemesh.metrics.exposition import Page

FRESH = 0.5
"""Seconds for which what was read from the kernel is as good as new: several may ask at once."""


class Measuring:
    """Of one node in a swarm. `manager` and `dispatcher` are there while this node is one, and leads."""

    def __init__(
        self,
        *,
        node: str,
        worker: Callable[[], Worker],
        session: Callable[[], Session],
        resolver: Resolver,
        hooks: SocketHooks | None,
        manager: Callable[[], Manager | None],
        dispatcher: Callable[[], Dispatcher | None],
        clock: Clock,
    ) -> None:
        self._node = node
        self._worker = worker
        self._session = session
        self._resolver = resolver
        self._hooks = hooks
        self._manager = manager
        self._dispatcher = dispatcher
        self._clock = clock
        self._tally = Tally()
        self._read_at = 0.0
        self._reading = asyncio.Lock()
        self._flows = FlowLog(node, clock, lambda: worker().parts, lambda: worker().plans)

    async def close(self) -> None:
        await self._flows.close()

    async def metrics(self) -> bytes:
        """In Prometheus' text format."""
        from hivemesh.metrics.exposition import Page  # a megabyte that a node without a scraper does without

        await self._refresh()
        page = Page()
        page.put(f.INFO, {(self._node, hivemesh.__version__): 1})
        for family in (
            f.CONNECTIONS, f.BYTES, f.REFUSED, f.VIP_CONNECTIONS, f.SERVICE_BYTES, f.SERVICE_DROPPED, f.TUNNEL_BYTES,
            f.TUNNEL_DROPPED, f.DROPPED,
        ):  # fmt: skip
            page.put(family, self._tally.of(family.name))
        self._put_node(page)
        self._put_names(page)
        self._put_manager(page)
        return page.text()

    def source(self, what: What) -> AsyncGenerator[Entry, None]:
        """What this node itself tells, without an end."""
        return self._flows.read() if what == "flows" else self._counts()

    async def _counts(self) -> AsyncGenerator[Entry, None]:
        while True:
            yield await self.counts()
            await self._clock.sleep(COUNTS_PERIOD)

    async def counts(self) -> Counts:
        """As of now."""
        await self._refresh()
        return counts_of(self._tally, self._node, self._read_at, self._host_mode_names())

    def _host_mode_names(self) -> dict[str, str]:
        worker = self._worker()
        if worker.parts is None:
            return {}
        found = host_backends(worker.parts, worker.plans)
        return {str(address): short_name(task.name, task.id) for address, task in found.items()}

    async def _refresh(self) -> None:
        async with self._reading:
            now = self._clock.now()
            worker = self._worker()
            if worker.parts is None or now - self._read_at < FRESH:
                return
            samples = await asyncio.to_thread(read, worker.parts, worker.plans, self._hooks)
            self._read_at = self._clock.now()
            self._tally.add(samples, self._read_at)

    def _put_node(self, page: "Page") -> None:
        worker, session = self._worker(), self._session()
        assigned, applied = worker.revisions
        page.put(f.DRIFT, _by_label(worker.drift.items()))
        page.put_one(f.PENDING, worker.network.failing)
        page.put_durations(f.RECONCILE, {(): worker.network.passes})
        page.put(f.REVISION, {("assigned",): assigned, ("applied",): applied})
        page.put_one(f.CONNECTED, session.state == "ready" and not session.error)
        tasks = worker.parts.tasks.values() if worker.parts is not None else ()
        page.put(f.TASKS, _by_label(Counter(item.task.status.state.name.lower() for item in tasks).items()))
        page.put(f.FLOWS, {("told",): self._flows.told, ("lost",): self._flows.lost})

    def _put_names(self, page: "Page") -> None:
        counted = self._resolver.counted
        took = Durations(FAST)
        took.counts, took.total = list(counted.buckets) or took.counts, counted.seconds
        page.put(f.DNS_QUESTIONS, {("udp",): counted.udp, ("tcp",): counted.tcp})
        page.put_one(f.DNS_UNANSWERED, counted.unanswered)
        page.put_durations(f.DNS_FORWARD, {(): took})
        failed = len(self._resolver.failed)
        page.put(f.DNS_SANDBOXES, {("failed",): failed, ("answered",): self._resolver.sandboxes - failed})

    def _put_manager(self, page: "Page") -> None:
        manager, dispatcher = self._manager(), self._dispatcher()
        if manager is None:
            return
        tables = manager.tables
        page.put_durations(f.STORE, {("commit",): tables.writes, ("read",): tables.reads})
        if dispatcher is None:
            return
        now = self._clock.steady()
        names = {node.id: node.description.hostname or node.id for node in tables.view.all(Node)}
        standings = {names.get(found.node, found.node): found for found in dispatcher.standings()}
        page.put_one(f.SESSIONS, len(standings))
        revisions: dict[Labels, float] = {(name, "sent"): found.sent for name, found in standings.items()}
        revisions |= {(name, "acknowledged"): max(found.acked, 0) for name, found in standings.items()}
        page.put(f.NODE_REVISION, revisions)
        lags = ((name, now - found.since if found.since is not None else 0.0) for name, found in standings.items())
        page.put(f.LAG, _by_label(lags))
        page.put_durations(f.CONVERGENCE, {(): dispatcher.convergence})


def _by_label(counts: Iterable[tuple[str, float]]) -> dict[Labels, float]:
    """For a family with one label."""
    return {(label,): value for label, value in counts}


def scraped(measuring: Callable[[], Measuring | None]) -> web.RouteDef:
    """`GET /metrics`; without a value of ours while the node is in no swarm."""

    async def handler(request: web.Request) -> web.Response:
        from hivemesh.metrics.exposition import CONTENT_TYPE, Page

        found = measuring()
        text = await found.metrics() if found is not None else Page().text()
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    return web.get("/metrics", handler)


async def dressed(entries: AsyncGenerator[Entry, None], manager: Manager) -> AsyncGenerator[Entry, None]:
    """With the names of tasks that only managers know."""
    async with aclosing(entries):
        async for entry in entries:
            yield _dressed(entry, manager)


def _dressed(entry: Entry, manager: Manager) -> Entry:

    def task(identifier: str) -> str:
        found = manager.tables.view.get(Task, identifier) if identifier else None
        return f"{found.service_name}.{found.slot or found.node_id or 0}" if found is not None else ""

    def end(of: End) -> End:
        return of if of.name or not of.task else msgspec.structs.replace(of, name=task(of.task))

    if isinstance(entry, Flow):
        backend = end(entry.backend) if entry.backend is not None else None
        return msgspec.structs.replace(entry, source=end(entry.source), target=end(entry.target), backend=backend)
    if isinstance(entry, Counts):
        named = {
            str(interface.ip): task(found.id)
            for found in manager.tables.view.all(Task)
            if not found.status.state.dead
            for attachment in found.attachments[:1]  # ingress comes first
            for interface in attachment.addresses
        }
        backends = tuple(msgspec.structs.replace(b, name=b.name or named.get(b.backend, "")) for b in entry.backends)
        return msgspec.structs.replace(entry, backends=backends)
    return entry


def nodes_named(manager: Manager, wanted: str) -> Callable[[], list[Node]]:
    """All nodes, or the one of that name or id; asked again and again. Raises `NotFound`."""
    if not wanted:
        return lambda: list(manager.tables.view.all(Node))
    identifier: NodeID = manager.node(wanted).id

    def one() -> list[Node]:
        found = manager.tables.view.get(Node, identifier)
        return [found] if found is not None else []

    return one
