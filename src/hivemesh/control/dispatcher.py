"""Hands every node its view, as a snapshot and then deltas, and learns from the nodes what is true there.

Each session has a sender of its own that looks only at the latest view when its socket is free: a slow agent skips
revisions and holds up nobody. "Removed everywhere" is a fact: a task that should stop is released, that is, may get
its stop signal, once every live node has acknowledged a revision in which the task gets no new connections.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hivemesh.clock import Clock
from hivemesh.control import rotation
from hivemesh.control.inbox import Inbox, NodeNews
from hivemesh.control.monitor import Monitor
from hivemesh.control.packing import Packer, pieces
from hivemesh.control.views import Deriver, NodeView, difference
from hivemesh.meters import SLOW, Durations
from hivemesh.model.errors import Conflict, Forbidden, Invalid
from hivemesh.model.ids import NodeID, TaskID
from hivemesh.model.node import Node
from hivemesh.model.task import Task, TaskState
from hivemesh.store.tables import Tables
from hivemesh.wire import codec
from hivemesh.wire.control import (
    CLOSE_FAILED,
    CLOSE_REMOVED,
    CLOSE_REPLACED,
    CLOSE_SILENT,
    Ack,
    Delta,
    FromAgent,
    FromManager,
    Heartbeat,
    Hello,
    Report,
    Snapshot,
    Welcome,
)

log = logging.getLogger("hivemesh.dispatcher")

MOST_OWED = 1000
"""Frames without an acknowledgement whose times are kept, for each node."""
RELEASE_TIMEOUT = 5.0
"""Seconds after which a task is released although a live node did not acknowledge."""


class Channel(Protocol):
    """The way to one agent, as the cluster port offers it."""

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises `ConnectionError` when the agent is gone."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Say why, and hang up. Safe to repeat."""
        ...


class Session:
    """The manager's end of one agent's connection."""

    def __init__(self, node: NodeID, channel: Channel) -> None:
        self.node = node
        self.channel = channel
        self.wake = asyncio.Event()
        self.wake.set()
        self.welcome: Welcome | None = None  # as last sent
        self._sent: NodeView | None = None  # what the agent has, or has in its socket
        self._frame = 0  # revision of the last frame sent
        self._acked = -1
        self._owed: deque[tuple[int, float]] = deque(
            maxlen=MOST_OWED
        )  # frames not acknowledged, and when they were sent

    @property
    def applied(self) -> int:
        """The revision the node's kernel is known to hold: revisions that change nothing for it need no frame."""
        return self._sent.revision if self._sent is not None and self._acked >= self._frame else self._acked

    def ack(self, frame: Ack) -> None:
        """Only a revision of which nothing is pending counts as applied."""
        if frame.pending == 0:
            self._acked = max(self._acked, frame.revision)

    def owes(self, now: float) -> None:
        """The frames of `advance` are on their way."""
        self._owed.append((self._frame, now))

    def paid(self) -> list[float]:
        """When the frames were sent that the node has acknowledged since the last call."""
        found = []
        while self._owed and self._owed[0][0] <= self._acked:
            found.append(self._owed.popleft()[1])
        return found

    def standing(self) -> "Standing":
        return Standing(self.node, self._frame, self._acked, self._owed[0][1] if self._owed else None)

    def advance(self, view: NodeView) -> list[FromManager]:
        """The frames that take the agent to `view`, if it needs any."""
        before, self._sent = self._sent, view
        if before is None:
            self._frame = view.revision
            return pieces(Snapshot(revision=view.revision, items=tuple(view.items())))
        changed, removed = difference(before, view)
        if not changed and not removed:
            return []
        base, self._frame = self._frame, view.revision
        return pieces(Delta(base=base, revision=view.revision, changed=tuple(changed), removed=tuple(removed)))


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a node has come: the newest revision sent, the one acknowledged (-1: none), and since when (seconds of
    the clock) it owes the oldest acknowledgement."""

    node: NodeID
    sent: int
    acked: int
    since: float | None


class Dispatcher:
    """All sessions of this manager."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock
        self._deriver = Deriver()
        self._packer = Packer()
        self._sessions: dict[NodeID, Session] = {}
        self._draining: dict[TaskID, int] = {}  # should stop: the first revision without it as a backend
        self._released: set[TaskID] = set()
        self._ready: frozenset[NodeID] = frozenset()
        self._revision = -1
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._timers: set[asyncio.Task[None]] = set()
        self.convergence = Durations(SLOW)
        """From a view's sending to its acknowledgement."""
        self.inbox = Inbox(tables, clock)
        self.monitor = Monitor(clock, self._heartbeat, self._on_silent)

    async def run(self) -> None:
        """Follow the tables for as long as the manager lives."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.inbox.run(), name="inbox")
                tasks.create_task(self.monitor.run(), name="node monitor")
                tasks.create_task(self._follow(), name="views")
        finally:
            for timer in self._timers:
                timer.cancel()

    async def applied(self, revision: int) -> None:
        """Until every live node's kernel holds `revision`."""
        if self._floor() < revision:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((revision, future))
            await future

    async def serve(self, node: NodeID, channel: Channel, frames: AsyncIterator[bytes], address: str) -> None:
        """One session from its first frame to its end. `address` is where the agent calls from.

        Raises `Invalid` when a frame makes no sense, `Forbidden` when the node is no member, `Conflict` when another
        connected node has its data path address.
        """
        hello = _decode(await anext(frames, b""))
        if not isinstance(hello, Hello):
            raise Invalid("the first frame of a session must be hello")
        await self._record(node, hello, address)
        if self._tables.view.get(Node, node) is None:
            raise Forbidden(f"node {node} is not a member of this swarm")
        if self._revision < self._tables.view.revision:
            self._refresh()
        session = Session(node, channel)
        before = self._sessions.get(node)
        self._sessions[node] = session
        if before is not None:
            self._spawn(before.channel.close(CLOSE_REPLACED, "a newer session of this node took over"))
        sender = asyncio.create_task(self._send(session), name=f"sender {node}")
        try:
            async for data in frames:
                await self._receive(session, _decode(data), address)
        finally:
            sender.cancel()
            if self._sessions.get(node) is session:
                del self._sessions[node]
            await asyncio.gather(sender, return_exceptions=True)
            self._settle()

    def standings(self) -> list[Standing]:
        """Of all nodes with a session here."""
        return [session.standing() for session in self._sessions.values()]

    async def tell(self, node: NodeID, frame: FromManager) -> bool:
        """Send something beside the view; False when the node has no session here."""
        session = self._sessions.get(node)
        if session is None:
            return False
        try:
            await session.channel.send(codec.pack(frame))
        except ConnectionError:
            return False
        return True

    async def close(self, node: NodeID, code: int, reason: str) -> None:
        """End a node's session, if it has one here."""
        session = self._sessions.get(node)
        if session is not None:
            await session.channel.close(code, reason)

    async def _record(self, node: NodeID, hello: Hello, address: str) -> None:
        for other in self._tables.view.all(Node):
            if other.vtep == hello.vtep and other.id != node and other.id in self._sessions:
                raise Conflict(
                    f"node {other.id} ({other.description.hostname}) has the data path address {hello.vtep} already: "
                    "give each node an address of its own (--data-path-addr)"
                )
        self.monitor.heard(node)
        self.inbox.news(node, NodeNews(state="ready", description=hello.description, vtep=hello.vtep, addr=address))
        await self.inbox.flushed()

    async def _receive(self, session: Session, frame: FromAgent, address: str) -> None:
        self.monitor.heard(session.node)
        match frame:
            case Ack():
                session.ack(frame)
                for sent in session.paid():
                    self.convergence.observe(self._clock.steady() - sent)
                self._settle()
            case Report():
                self.inbox.reports(session.node, frame.tasks)
            case Hello():  # the machine changed its description
                await self._record(session.node, frame, address)
            case Heartbeat():
                pass

    async def _send(self, session: Session) -> None:
        """Bring the agent to the latest view whenever there is a newer one and room in the socket."""
        try:
            while True:
                await session.wake.wait()
                session.wake.clear()
                view = self._deriver.of(session.node, self._released)
                if view is None:
                    await session.channel.close(CLOSE_REMOVED, "the node was removed from the swarm")
                    return
                welcome = self._welcome(session.node)
                if welcome != session.welcome:
                    session.welcome = welcome
                    await session.channel.send(codec.pack(welcome))
                frames = session.advance(view)
                if frames:
                    session.owes(self._clock.steady())
                else:
                    self._settle()
                for frame in frames:
                    await session.channel.send(self._packer.pack(frame))
        except ConnectionError:
            pass  # the reader sees the end of the connection too
        except Exception:
            log.exception("cannot send node %s its view", session.node)
            await session.channel.close(CLOSE_FAILED, "the manager failed")

    async def _follow(self) -> None:
        while True:
            self._refresh()
            await self._tables.changed(self._revision)

    def _refresh(self) -> None:
        store = self._tables.view
        self._deriver.update(store)
        self._packer.forget()
        self._revision = store.revision
        nodes = store.all(Node)
        self._ready = frozenset(node.id for node in nodes if node.state == "ready")
        self.monitor.watch(node.id for node in nodes if node.state != "down")
        self.monitor.remember(node.id for node in nodes)
        self._drain()
        for session in self._sessions.values():
            session.wake.set()
        self._settle()

    def _drain(self) -> None:
        """Find the tasks that should stop; one that never served needs no acknowledgement."""
        stopping = {
            task.id: task.status.state
            for task in self._tables.view.all(Task)
            if task.desired > TaskState.RUNNING and task.node_id is not None and not task.status.state.dead
        }
        self._released &= stopping.keys()
        self._draining = {task: first for task, first in self._draining.items() if task in stopping}
        fresh = stopping.keys() - self._released - self._draining.keys()
        for task in fresh:
            if stopping[task] < TaskState.RUNNING:
                self._released.add(task)
            else:
                self._draining[task] = self._revision
        if fresh & self._draining.keys():
            self._spawn(self._expire(fresh & self._draining.keys()))

    async def _expire(self, tasks: set[TaskID]) -> None:
        await self._clock.sleep(RELEASE_TIMEOUT)
        late = tasks & self._draining.keys()
        if late:
            first = min(self._draining[task] for task in late)
            silent = sorted(node for node in self._ready if self._applied_on(node) < first)
            log.warning(
                "%d tasks are stopped although these nodes did not acknowledge in %g s: %s",
                len(late),
                RELEASE_TIMEOUT,
                ", ".join(silent),
            )
            self._release(late)

    def _settle(self) -> None:
        """See what the acknowledgements so far allow."""
        floor = self._floor()
        self._release({task for task, first in self._draining.items() if first <= floor})
        due = [future for revision, future in self._waiting if revision <= floor]
        self._waiting = [waiter for waiter in self._waiting if waiter[0] > floor and not waiter[1].done()]
        for future in due:
            if not future.done():
                future.set_result(None)

    def _release(self, tasks: set[TaskID]) -> None:
        for identifier in tasks:
            del self._draining[identifier]
            self._released.add(identifier)
            task = self._tables.view.get(Task, identifier)
            session = self._sessions.get(task.node_id) if task is not None and task.node_id is not None else None
            if session is not None:
                session.wake.set()

    def _floor(self) -> int:
        """The revision all live nodes hold. A node that is ready but between two sessions still forwards: it counts."""
        return min((self._applied_on(node) for node in self._ready), default=self._revision)

    def _applied_on(self, node: NodeID) -> int:
        session = self._sessions.get(node)
        return session.applied if session is not None else -1

    def _heartbeat(self) -> float:
        return self._tables.view.cluster.spec.dispatcher.heartbeat_period / 1e9

    def _welcome(self, node: NodeID) -> Welcome:
        store = self._tables.view
        known = store.get(Node, node)
        return Welcome(
            heartbeat=self._heartbeat(),
            managers=tuple(sorted(other.manager_addr for other in store.all(Node) if other.manager_addr)),
            labels=dict(known.spec.labels) if known is not None else {},
            role=known.acting_role if known is not None else "",
            roots=rotation.roots(store.cluster),
            issuer=rotation.issuer(store.cluster),
        )

    def _on_silent(self, node: NodeID) -> None:
        log.warning("node %s missed its heartbeats: it counts as down", node)
        self.inbox.news(node, NodeNews(state="down", message="heartbeat failure"))
        self._spawn(self.close(node, CLOSE_SILENT, "no heartbeat"))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        timer = asyncio.get_running_loop().create_task(work)
        self._timers.add(timer)
        timer.add_done_callback(self._timers.discard)


def _decode(data: bytes) -> FromAgent:
    """Raises `Invalid`."""
    try:
        return codec.unpack(data, FromAgent)  # type: ignore[arg-type]
    except msgspec.MsgspecError as error:
        raise Invalid(f"malformed frame: {error}") from None
