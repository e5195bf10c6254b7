"""The agent's end of the session: keeps the node's view, hands it to the worker, carries reports back.

The connection may break at any time; what must not get lost is kept here until the view shows that the managers have
it. A delta that does not build on what we have is never applied: a new session brings a whole snapshot.
"""

import asyncio
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

import aiohttp
import msgspec

from hivemesh.agent.identity import Identity
from hivemesh.agent.join import reason_of, renew
from hivemesh.agent.knock import Silence, who_is_there
from hivemesh.clock import Clock
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.ids import TaskID
from hivemesh.model.node import NodeDescription, Role
from hivemesh.model.task import TaskStatus
from hivemesh.pki import BACKDATED, MANAGER_NAME
from hivemesh.wire import codec
from hivemesh.wire.control import (
    CLOSE_REMOVED,
    LEADER_HEADER,
    MAX_FRAME,
    REFUSAL_HEADER,
    Ack,
    ExamineWanted,
    FeedUnwanted,
    FeedWanted,
    FromAgent,
    FromManager,
    Heartbeat,
    Hello,
    InspectWanted,
    LogsUnwanted,
    LogsWanted,
    Report,
    Snapshot,
    TaskItem,
    TaskReport,
    TraceWanted,
    View,
    Welcome,
    key_of,
)

log = logging.getLogger("hivemesh.agent")

State = Literal["connecting", "ready", "removed"]
"""`ready` once a manager gave us a view, and from then on: `error` says what ails the connection, if anything."""

FIRST_DELAY, LAST_DELAY = 0.1, 8.0
"""Seconds between attempts to reach a manager, doubled each time (Docker's numbers)."""
LAST_DELAY_OF_SEVERAL = 0.5
"""Likewise while several managers are known: one of them may lead any moment."""
MOST_HOPS = 3
"""Times in a row that a manager may send us to another one as the leader."""
PING = 4.0
"""Seconds of silence after which a manager is asked for a sign of life; half of that it has for the answer. Only while
several managers are known: with one there is nowhere else to go."""
CONNECT_TIMEOUT = 5.0
"""Seconds for TCP, TLS and the upgrade."""
MISSED = 3
"""Heartbeats that may stay unacknowledged by the manager's kernel before the connection counts as broken."""
JITTER = 0.1
"""Heartbeats come a tenth early or late, so that nodes started together drift apart."""
RENEW_AT = (0.5, 0.8)
"""Part of a certificate's life after which it is renewed, chosen at random (Docker's numbers)."""
CERTIFICATE_RETRY = 1.0
"""Seconds between attempts to get a certificate for another role, or of another root."""
RENEW_RETRY = (60.0, 3600.0)
"""Seconds between attempts to renew: a tenth of what is left, within these."""
DESCRIBE_PERIOD = 60.0
"""Seconds between looks at whether the machine's description changed."""

Assign = Callable[[View, int], None]
Describe = Callable[[], Awaitable[NodeDescription]]


class Gap(Exception):
    """A delta does not build on the view we have."""


class Elsewhere(Exception):
    """Another manager leads, at the host:port that is the message."""


class Removed(Exception):
    """The managers say that this node is no member any more."""


class Session:
    """One node's connection to its managers, for as long as it is a member.

    `assign` gets the whole view and its revision, on the event loop, and must not block. `describe` looks at the
    machine, `logs` takes what a manager (host:port) wants to read. Implements the worker's port: `report` and `ack`.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        assign: Assign,
        describe: Describe,
        clock: Clock,
        logs: Callable[[LogsWanted | LogsUnwanted, str], None] = lambda frame, manager: None,
        examine: Callable[[ExamineWanted, str], None] = lambda frame, manager: None,
        trace: Callable[[TraceWanted, str], None] = lambda frame, manager: None,
        inspect: Callable[[InspectWanted, str], None] = lambda frame, manager: None,
        feed: Callable[[FeedWanted | FeedUnwanted, str], None] = lambda frame, manager: None,
    ) -> None:
        self.identity = identity
        self.state: State = "connecting"
        self.error = ""
        self.view: View = {}
        self.revision = 0
        self.labels: dict[str, str] = {}
        self._assign = assign
        self._describe = describe
        self._clock = clock
        self._logs = logs
        self._examine = examine
        self._trace = trace
        self._inspect = inspect
        self._feed = feed
        self._changed = asyncio.Condition()
        self._reports: dict[TaskID, TaskStatus] = {}  # the latest of each task until the view shows it
        self._unsent: set[TaskID] = set()
        self._acks: list[Ack] = []
        self._heartbeat_due = False
        self._hello: Hello | None = None
        self._hello_due = False
        self._wake = asyncio.Event()
        self._due_role = ""  # what the managers want this node to be
        self._due_issuer = ""  # whose certificate they want it to have
        self._certificate_due = asyncio.Event()

    # --- the worker's port --------------------------------------------------------------------------------------

    def report(self, task: TaskID, status: TaskStatus) -> None:
        """A task's latest status; sent now or as soon as there is a manager, until one has it."""
        self._reports[task] = status
        if not self._confirmed(task, status):
            self._unsent.add(task)
            self._wake.set()

    def ack(self, revision: int, pending: int = 0) -> None:
        """The kernel holds `revision`, but for `pending` things that are retried."""
        if revision <= self.revision:
            clean = [ack for ack in self._acks if pending and not ack.pending]  # still worth telling
            self._acks = [*clean, Ack(revision=revision, pending=pending)]
            self._wake.set()

    # --- for the owner ------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Until a manager accepted this node and gave it a view, or removed it: look at `state` then."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state != "connecting")

    async def role_is(self, role: Role) -> None:
        """Until this node has that role, by its certificate."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.identity.facts.role == role)

    async def run(self) -> None:
        """Stay connected. Returns only when the node was removed from the swarm (`state`, `error`)."""
        renewal = asyncio.create_task(self._renew(), name="certificate renewal")
        try:
            delay, leader, manager, hops = FIRST_DELAY, "", "", 0
            while True:
                began, candidates = self._clock.steady(), [leader] if leader else self._in_turn(manager)
                leader = ""
                try:
                    self._check_certificate()
                    manager = await who_is_there(candidates, CONNECT_TIMEOUT)
                    await self._connect(manager)
                except Elsewhere as told:
                    hops += 1
                    if hops <= MOST_HOPS:
                        leader = str(told)
                        continue
                except Removed as error:
                    await self._become("removed", str(error))
                    log.error("this node was removed from its swarm: %s", error)
                    return
                except Gap as error:
                    log.info("asking for a new snapshot: %s", error)
                    delay = FIRST_DELAY
                except (aiohttp.ClientError, OSError, TimeoutError, HivemeshError, msgspec.MsgspecError) as error:
                    reason = reason_of(error)
                    if isinstance(error, aiohttp.ClientError):
                        reason = f"{manager}: {reason}"
                    if reason != self.error:
                        log.warning("no session with a manager: %s", reason)
                    await self._become(self.state, reason)
                    if isinstance(error, Silence):
                        continue  # to go on knocking is the pause
                hops = 0
                if self._clock.steady() - began > LAST_DELAY:  # it held for a while
                    delay = FIRST_DELAY
                await self._clock.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, LAST_DELAY_OF_SEVERAL if self._several else LAST_DELAY)
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)

    def _in_turn(self, failed: str) -> list[str]:
        """Who is tried, in random order; the one that failed last comes last."""
        known = self.identity.facts.managers
        return sorted(random.sample(known, len(known)), key=lambda manager: manager == failed)

    @property
    def _several(self) -> bool:
        return len(self.identity.facts.managers) > 1

    def _check_certificate(self) -> None:
        end = self.identity.validity()[1]
        if end < self._clock.now():
            raise Unavailable(
                f"the certificate of this node expired on {time.strftime('%Y-%m-%d', time.gmtime(end))}: "
                "check the clock, or leave the swarm and join again"
            )

    # --- one connection -----------------------------------------------------------------------------------------

    async def _connect(self, manager: str) -> None:
        """One session, to its end. Always raises, or is cancelled."""
        self._hello = await self._greeting()
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as http:
            try:
                async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                    ws = await http.ws_connect(
                        f"https://{manager}/v1/session",
                        ssl=self.identity.client_context(),
                        server_hostname=MANAGER_NAME,
                        max_msg_size=MAX_FRAME,
                        timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                        autoping=False,
                    )
            except aiohttp.WSServerHandshakeError as error:
                said = error.headers.get(REFUSAL_HEADER, "") if error.headers else ""
                if error.status == 421 and error.headers and LEADER_HEADER in error.headers:
                    raise Elsewhere(error.headers[LEADER_HEADER]) from None
                if error.status == 403:
                    raise Removed(said or "the manager refuses this node") from None
                raise ConnectionError(f"the manager at {manager} answers {error.status}: {said}") from None
            async with ws:
                await self._converse(ws, manager)

    async def _converse(self, ws: aiohttp.ClientWebSocketResponse, manager: str) -> None:
        assert self._hello is not None
        await ws.send_bytes(codec.pack(self._hello))
        welcome = await self._receive(ws, manager, 2 * CONNECT_TIMEOUT)
        if not isinstance(welcome, Welcome):
            raise ConnectionError(f"the manager at {manager} did not begin with a welcome")
        self._acks = []  # of another session's view
        complete = False
        beat = self._heed(welcome, ws)
        helpers = [
            asyncio.create_task(self._watch_description(), name="description"),
            asyncio.create_task(self._take_certificates(), name="certificate"),
        ]
        try:
            while True:
                frame = await self._receive(ws, manager, None)
                if isinstance(frame, Welcome):
                    beat.cancel()
                    beat = self._heed(frame, ws)
                    continue
                if isinstance(frame, LogsWanted | LogsUnwanted):
                    self._logs(frame, manager)
                    continue
                if isinstance(frame, ExamineWanted):
                    self._examine(frame, manager)
                    continue
                if isinstance(frame, TraceWanted):
                    self._trace(frame, manager)
                    continue
                if isinstance(frame, InspectWanted):
                    self._inspect(frame, manager)
                    continue
                if isinstance(frame, FeedWanted | FeedUnwanted):
                    self._feed(frame, manager)
                    continue
                if isinstance(frame, Snapshot):
                    self.view = {key_of(item): item for item in frame.items}
                elif complete and frame.base == self.revision:
                    view = dict(self.view)
                    view.update((key_of(item), item) for item in frame.changed)
                    for key in frame.removed:
                        view.pop(key, None)
                    self.view = view
                else:
                    raise Gap(f"a delta builds on revision {frame.base}, this node has {self.revision}")
                self.revision = frame.revision
                self._confirm()
                if not complete:
                    complete = True
                    self._unsent = set(self._reports)
                    helpers.append(asyncio.create_task(self._send(ws), name="frames to the manager"))
                    self._wake.set()
                    log.info("session with the manager at %s", manager)
                    await self._become("ready", "")
                self._assign(self.view, self.revision)
        finally:
            for helper in (beat, *helpers):
                helper.cancel()
            for outcome in await asyncio.gather(beat, *helpers, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
                    log.error("a part of the session failed", exc_info=outcome)

    def _heed(self, welcome: Welcome, ws: aiohttp.ClientWebSocketResponse) -> "asyncio.Task[None]":
        """Take over what the managers say of themselves and of this node; the heartbeat beats as they want it."""
        _give_up_after(ws, MISSED * welcome.heartbeat)
        self.labels = welcome.labels
        self._due_role, self._due_issuer = welcome.role, welcome.issuer
        try:
            self.identity = self.identity.with_managers(welcome.managers).with_roots(welcome.roots)
        except OSError as error:  # a full disk: as before, then; a new root waits until this node trusts it
            log.warning("this node cannot remember who the managers are: %s", error)
        self._certificate_due.set()
        return asyncio.create_task(self._beat(welcome.heartbeat), name="heartbeat")

    async def _receive(self, ws: aiohttp.ClientWebSocketResponse, manager: str, timeout: float | None) -> FromManager:
        message = await self._heard(ws, manager, timeout)
        if message.type is aiohttp.WSMsgType.BINARY:
            return codec.unpack(message.data, FromManager)  # type: ignore[arg-type]
        if message.type is aiohttp.WSMsgType.CLOSE:
            if message.data == CLOSE_REMOVED:
                raise Removed(message.extra or "the node was removed from the swarm")
            raise ConnectionError(f"the manager at {manager} ended the session: {message.extra or message.data}")
        raise ConnectionError(f"the connection to the manager at {manager} broke")

    async def _heard(
        self, ws: aiohttp.ClientWebSocketResponse, manager: str, timeout: float | None
    ) -> aiohttp.WSMessage:
        """The next message that is no sign of life. Without `timeout` a manager that gives none is left for another.

        How many there are is looked at each time: a session that began with the only manager goes on beside others.
        """
        asked = False
        while True:
            try:
                message = await ws.receive(timeout or (PING / 2 if asked else PING))
            except TimeoutError:
                if timeout is not None:
                    raise
                if asked:
                    raise ConnectionError(f"the manager at {manager} says nothing any more") from None
                if asked := self._several:
                    async with asyncio.timeout(PING / 2):
                        await ws.ping()
                continue
            if message.type is aiohttp.WSMsgType.PING:
                await ws.pong(message.data)
            elif message.type is not aiohttp.WSMsgType.PONG:
                return message
            asked = False

    async def _send(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """All frames go through here; what piles up while the socket is full becomes one frame."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            frames: list[FromAgent] = []
            if self._hello_due and self._hello is not None:
                self._hello_due = False
                frames.append(self._hello)
            if self._unsent:
                tasks = tuple(TaskReport(task=t, status=self._reports[t]) for t in self._unsent if t in self._reports)
                self._unsent = set()
                frames.append(Report(tasks=tasks))
            frames += self._acks
            self._acks = []
            if self._heartbeat_due:
                self._heartbeat_due = False
                if not frames:  # any frame is a sign of life
                    frames.append(Heartbeat())
            for frame in frames:
                await ws.send_bytes(codec.pack(frame))

    def _confirm(self) -> None:
        """Forget the reports that the managers have, and those of tasks that are gone."""
        for task, status in list(self._reports.items()):
            if f"task/{task}" not in self.view:
                del self._reports[task]
                self._unsent.discard(task)
            else:
                self._confirmed(task, status)

    def _confirmed(self, task: TaskID, status: TaskStatus) -> bool:
        """Whether the view shows this status or a later one: then there is nothing left to report."""
        item = self.view.get(f"task/{task}")
        known = item.task.status if isinstance(item, TaskItem) else None
        if known is None or (known != status and known.state <= status.state):
            return False
        self._reports.pop(task, None)
        self._unsent.discard(task)
        return True

    # --- helpers that run beside it -----------------------------------------------------------------------------

    async def _beat(self, period: float) -> None:
        while True:
            self._heartbeat_due = True  # at once too: the manager may count in a new, shorter period from now on
            self._wake.set()
            await self._clock.sleep(period * random.uniform(1 - JITTER, 1 + JITTER))

    async def _watch_description(self) -> None:
        while True:
            await self._clock.sleep(DESCRIBE_PERIOD)
            await self.tell_changes()

    async def tell_changes(self) -> None:
        """Managers hear what is new about this machine, if anything is."""
        hello = await self._introduction()
        if hello != self._hello:
            self._hello, self._hello_due = hello, True
            self._wake.set()

    async def _greeting(self) -> Hello:
        """What this node says first. It said it before, if it had a session: to come back must not take an engine's
        time, and what is new since is told a moment later (`_take_certificates`)."""
        if self._hello is None:
            return await self._introduction()
        description = msgspec.structs.replace(self._hello.description, trust=self.identity.trust())
        return Hello(description=description, vtep=self.identity.facts.vtep)

    async def _introduction(self) -> Hello:
        description = msgspec.structs.replace(await self._describe(), trust=self.identity.trust())
        return Hello(description=description, vtep=self.identity.facts.vtep)

    async def _renew(self) -> None:
        """Replace the certificate in time. Connections keep theirs; the next one uses the new one."""
        while True:
            start, end = self.identity.validity()
            issued = start + BACKDATED
            due = issued + (end - issued) * random.uniform(*RENEW_AT)
            await self._clock.sleep(max(0.0, due - self._clock.now()))
            while not await self._renewed():
                left = end - self._clock.now()
                await self._clock.sleep(min(max(left / 10, RENEW_RETRY[0]), RENEW_RETRY[1]))

    async def _take_certificates(self) -> None:
        """Get a certificate for the role, and of the root, that the managers want; the next connection uses it.

        Then tell them whom this node trusts by now.
        """
        while True:
            await self._certificate_due.wait()
            self._certificate_due.clear()
            while self._lacks_certificate():
                before = self.identity.facts.role
                if not await self._renewed():
                    await self._clock.sleep(CERTIFICATE_RETRY)
                elif before != self.identity.facts.role:
                    log.info("this node is a %s now", self.identity.facts.role)
            await self.tell_changes()

    def _lacks_certificate(self) -> bool:
        if self._due_role not in ("", self.identity.facts.role):
            return True
        return self._due_issuer not in ("", self.identity.trust().issuer)

    async def _renewed(self) -> bool:
        try:
            renewed = await renew(self.identity)
        except (HivemeshError, OSError) as error:  # the latter: a full disk
            log.warning("cannot renew the certificate of this node yet: %s", error)
            return False
        log.info("renewed the certificate of this node")
        async with self._changed:
            if renewed.facts.role != self.identity.facts.role:
                self.identity = replace(renewed.with_managers(self.identity.facts.managers), ca=self.identity.ca)
            self._changed.notify_all()
        self._certificate_due.set()
        return True

    async def _become(self, state: State, error: str) -> None:
        async with self._changed:
            self.state, self.error = state, error
            self._changed.notify_all()


def _give_up_after(ws: aiohttp.ClientWebSocketResponse, seconds: float) -> None:
    """Without this a partition is noticed only after a quarter of an hour of TCP retransmissions (RFC 5482)."""
    sock = ws.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
