"""One task from its assignment to its end: sandbox, image, container, process, and back.

    ACCEPTED  PREPARING  READY  STARTING  RUNNING  then COMPLETE, FAILED or SHUTDOWN; REJECTED before STARTING

What stays true
- The sandbox is wired before the container's first instruction.
- A process gets its stop signal only when the task is released (every live node sends its connections elsewhere) or
  when the task is gone from the view (see `TaskItem`), and once nobody is at its door (`readiness.py`).
- States only move forward, also over restarts of the daemon: a container that runs is adopted as it is.
- A container with a health check runs, for everybody else, once it is healthy; one without, once it listens
  (`readiness.py`). One that turns unhealthy gets no new connections, and is stopped.
- A task that ended keeps its container, for its logs, until the managers forget the task.
"""

import asyncio
import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from hivemesh.agent.health import Check, check_of, examine
from hivemesh.agent.readiness import LISTEN_TIMEOUT, Doors, doors_of, until_delivered, until_nobody_calls, until_open
from hivemesh.agent.request import container_request
from hivemesh.clock import Clock
from hivemesh.engine.api import ContainerInfo, Engine
from hivemesh.kernel import listening
from hivemesh.model.errors import HivemeshError
from hivemesh.model.ids import TaskID
from hivemesh.model.service import PortConfig
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.wire.control import TaskItem

log = logging.getLogger("hivemesh.executor")

RETRY_FIRST, RETRY_LAST = 0.5, 30.0
"""Seconds between attempts to stop or remove what the engine does not let go, doubled each time."""
EXIT_GRACE = 0.05
"""Seconds the engine usually needs for the exit code; if so, one report is enough."""
UNKNOWN_EXIT = -1
SHORT_ID = 12
"""Characters of a container's id that are its host name, unless it was given one (Docker)."""
UNHEALTHY = "unhealthy container"
MOST_WORDS = 200
"""Characters of what the last check said that go into the task's error."""

T = TypeVar("T")


class Sandboxes(Protocol):
    """Who builds and removes the sandbox of a task."""

    async def attach(self, task: Task) -> str:
        """The path of the task's namespace, once it is wired. Raises `HivemeshError`."""
        ...

    async def detach(self, task: TaskID, *, unplug: bool = False) -> None:
        """Remove the sandbox; already gone is fine. `unplug`: at once, though its container runs."""
        ...

    def files(self, task: Task, hostname: str) -> dict[str, str]:
        """Files of ours by the path where each belongs in the container, written anew; `attach` was called.

        `hostname` is the container's, empty while it is not known.
        """
        ...

    async def secrets(self, task: Task, hostname: str) -> dict[str, str]:
        """Secrets and configs, files in memory by the path where each belongs in the container, once they are there.

        `hostname` is the node's. Raises `HivemeshError`.
        """
        ...

    def credential(self, task: Task) -> str:
        """What the registry of its image is shown, `X-Registry-Auth` as a client sent it; empty when nothing is."""
        ...

    def forget_secrets(self, task: TaskID) -> None:
        """The task has ended, and so does what it had in memory."""
        ...

    def forget(self, task: TaskID) -> None:
        """The container is removed, and the files may be."""
        ...

    def host_ports(self, task: Task) -> tuple[PortConfig, ...]:
        """The task's host-mode ports with real numbers; `attach` was called."""
        ...

    def report(self, task: TaskID, status: TaskStatus) -> None: ...


class _Stop(Exception):
    """The task should end, and nothing runs that must be stopped first."""


class Executor:
    """Owns one task. Its owner calls `update` with each new view's item, and `vanish` when there is none any more."""

    def __init__(
        self,
        item: TaskItem,
        *,
        engine: Engine,
        sandboxes: Sandboxes,
        clock: Clock,
        hostname: str,
        found: ContainerInfo | None = None,
    ) -> None:
        """`found` is the task's container, left by an earlier daemon."""
        self._item = item
        self._engine = engine
        self._sandboxes = sandboxes
        self._clock = clock
        self._hostname = hostname
        self._found = found
        self._container = found.id if found else item.task.status.container_id
        self._status = item.task.status
        self._pid = found.pid if found else 0
        self._netns = ""
        self._secrets: dict[str, str] = {}
        self._check: Check | None = None
        self._doors = Doors()
        self._check_known = False
        self._gone = False
        self._lost = ""  # why the sandbox cannot be used any more
        self._wake = asyncio.Event()

    @property
    def task(self) -> Task:
        return self._item.task

    @property
    def dead(self) -> bool:
        """Nothing of the task runs any more."""
        return self._status.state.dead

    def update(self, item: TaskItem) -> None:
        self._item = item
        self._gone = False
        self._wake.set()

    def vanish(self) -> None:
        """The managers forgot the task: nothing of it shall remain. `run` ends when that is done."""
        self._gone = True
        self._wake.set()

    def lose_sandbox(self, why: str) -> None:
        """Somebody removed the namespace under the container: it can only be replaced."""
        self._lost = why
        self._wake.set()

    async def run(self) -> None:
        """Until nothing of the task is left. Cancelling leaves the container running, for the next daemon."""
        if not self._status.state.dead:
            await self._live()
        elif self._found and self._found.state == "running":  # the managers gave it up while we were away
            await self._insist(self._unplug, "unplug")
            await self._insist(self._stop, "stop")
        await self._until(lambda: self._gone)
        await self._insist(self._remove, "remove")

    # --- the way of a task ----------------------------------------------------------------------------------------

    async def _live(self) -> None:
        found = self._found
        try:
            if found and found.state == "running":
                await self._adopt(found)
            elif self._status.state > TaskState.STARTING or (found and found.state == "exited"):
                self._end_unseen(found)
                return
            else:
                await self._begin()
            await self._follow()
        except _Stop:
            self._say(TaskState.SHUTDOWN, "shutdown")
        except (HivemeshError, OSError) as error:  # the latter: a full disk
            failed = self._status.state >= TaskState.STARTING
            log.warning("task %s: %s", self.task.name, error)
            self._say(TaskState.FAILED if failed else TaskState.REJECTED, self._status.message, err=str(error))
        finally:
            if self._status.state.dead:
                self._sandboxes.forget_secrets(self.task.id)
                await self._insist(lambda: self._sandboxes.detach(self.task.id), "unwire")

    async def _begin(self) -> None:
        """From nothing to a running process."""
        if self._may_stop():
            raise _Stop
        self._say(TaskState.ACCEPTED, "accepted")
        self._say(TaskState.PREPARING, "preparing")
        spec = self.task.spec.container_spec
        # What takes long can be given up half-way
        self._netns = await self._unless_stopped(self._prepare(spec.image))
        # What is short runs to its end, so that we know the container's id
        request = container_request(self.task, self._netns, self._hostname)
        files = self._sandboxes.files(self.task, request.hostname)
        request = dataclasses.replace(request, files=files, secrets=self._secrets)
        self._container = await self._engine.create(request)
        if not request.hostname:
            self._sandboxes.files(self.task, self._container[:SHORT_ID])
        self._say(TaskState.READY, "prepared")
        await self._until(lambda: self._may_stop() or self.task.desired >= TaskState.RUNNING)
        if self._may_stop():
            raise _Stop
        self._say(TaskState.STARTING, "starting")
        try:
            info = await self._engine.start(self._container)
        except HivemeshError as error:
            raise type(error)(f"starting container failed: {error}") from error
        self._pid = info.pid

    async def _prepare(self, image: str) -> str:
        """Sandbox and image at the same time, then what the task may know; the path of the sandbox's namespace."""
        wiring = asyncio.ensure_future(self._sandboxes.attach(self.task))
        try:
            await self._engine.ensure_image(image, self._sandboxes.credential(self.task))
            await self._learn_check()
            self._secrets = await self._sandboxes.secrets(self.task, self._hostname)
            return await wiring
        finally:
            wiring.cancel()
            await asyncio.gather(wiring, return_exceptions=True)

    async def _learn_check(self) -> None:
        spec = self.task.spec.container_spec
        image = await self._engine.describe(spec.image)
        self._check = check_of(spec.healthcheck, image.health)
        self._doors = doors_of(self.task, image)
        self._check_known = True

    async def _adopt(self, found: ContainerInfo) -> None:
        try:
            self._netns = await self._unless(self._is_given_up, self._sandboxes.attach(self.task))
            if not _lives_in(found.pid, self._netns):
                self.lose_sandbox("the task's network namespace was removed while the daemon was away")
        except _Stop:  # its networks may be gone from here: nothing to wait for
            return
        except HivemeshError as error:  # the container runs and may well be reachable: repairing goes on elsewhere
            log.warning("task %s: its sandbox cannot be brought in order: %s", self.task.name, error)
        log.info("task %s: adopted its container %s", self.task.name, found.id[:12])

    def _end_unseen(self, found: ContainerInfo | None) -> None:
        """The process ended while nobody looked."""
        if found and found.state == "exited":
            self._finish(found.exit_code)
        else:
            words = "the container is gone: the machine was restarted, or somebody removed it"
            self._say(TaskState.FAILED, "started", err=words, exit_code=UNKNOWN_EXIT)

    async def _follow(self) -> None:
        """Until the process ends, by itself or because it should."""
        ending = asyncio.ensure_future(self._engine.wait(self._container))
        stopping = asyncio.ensure_future(self._until(lambda: self._may_stop() or bool(self._lost)))
        ailing = asyncio.ensure_future(self._examine())
        leaving = asyncio.ensure_future(self._leave())
        futures = (ending, stopping, ailing)
        try:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                code = await ending
                await self._deliver()
                self._finish(code)
                return
            ill = "" if stopping.done() else await ailing
            if ill and self._status.state == TaskState.RUNNING:
                self._say(TaskState.RUNNING, "unhealthy", unhealthy=True)
            if not ill and not self._lost and self.task.attachments and not self._is_given_up():
                await until_nobody_calls(lambda: listening.has_callers(self._pid), self._clock)
            if self._is_given_up():
                await self._insist(self._unplug, "unplug")
            await self._insist(self._stop, "stop")
            code = await ending
            await self._deliver()
            if self._lost or ill:
                self._say(TaskState.FAILED, "started", err=self._lost or ill, exit_code=code)
            else:
                self._say(TaskState.SHUTDOWN, "shutdown", exit_code=code)
        finally:
            for future in (*futures, leaving):
                future.cancel()
            await asyncio.gather(*futures, leaving, return_exceptions=True)

    async def _deliver(self) -> None:
        """What the process said last, while its network stands."""
        if self._netns and not self._lost:
            await until_delivered(lambda: listening.has_last_words(self._netns), self._clock)

    async def _leave(self) -> None:
        """No more connections for a process that has ended, however long the engine takes to say how."""
        await self._engine.ended(self._container)
        await asyncio.sleep(EXIT_GRACE)
        if self._status.state == TaskState.RUNNING:
            self._say(TaskState.RUNNING, "ended", unhealthy=True)

    async def _examine(self) -> str:
        """Say that the task runs, as soon as it may be used; then until it may not: why."""
        if not self._check_known:
            await self._insist(self._learn_check, "learn the health check of")
        known = self._status.state == TaskState.RUNNING
        if self._check is None:
            if not known:
                await self._await_doors()
            if not known or self._status.container_id != self._container:
                self._say(TaskState.RUNNING, "started")
            await asyncio.Event().wait()  # for ever
            raise AssertionError
        if not known:
            self._say(TaskState.STARTING, "starting")
        said = await examine(
            self._check,
            self._engine,
            self._container,
            clock=self._clock,
            started=self._status.timestamp,
            healthy=known,
            became_healthy=lambda: self._say(TaskState.RUNNING, "started"),
        )
        log.warning("task %s is unhealthy: %s", self.task.name, said)
        return UNHEALTHY + (f": {said.splitlines()[-1][:MOST_WORDS]}" if said else "")

    async def _await_doors(self) -> None:
        """Nobody shall be refused for asking a server that has only just begun."""
        if not self._doors:
            return
        if not await until_open(self._doors, lambda: listening.doors_of(self._pid), self._clock):
            name, doors = self.task.name, self._doors
            log.warning("task %s does not listen on %s after %g s: used all the same", name, doors, LISTEN_TIMEOUT)

    def _finish(self, code: int) -> None:
        """The process ended by itself."""
        if code == 0:
            self._say(TaskState.COMPLETE, "finished")
        else:
            words = f"task: non-zero exit ({code})" if code != UNKNOWN_EXIT else "task: ended, and nobody saw how (-1)"
            self._say(TaskState.FAILED, "started", err=words, exit_code=code)

    async def _stop(self) -> None:
        spec = self.task.spec.container_spec
        await self._engine.stop(self._container, spec.stop_signal, spec.stop_grace_period / 1e9)

    async def _unplug(self) -> None:
        """Its addresses may be another task's by now."""
        self._netns = ""
        await self._sandboxes.detach(self.task.id, unplug=True)

    async def _remove(self) -> None:
        await self._sandboxes.detach(self.task.id)
        if self._container:
            await self._engine.remove(self._container)
        self._sandboxes.forget_secrets(self.task.id)
        self._sandboxes.forget(self.task.id)

    # --- waiting and telling --------------------------------------------------------------------------------------

    def _may_stop(self) -> bool:
        if self._is_given_up():
            return True
        ran = self._status.state >= TaskState.STARTING
        return self.task.desired > TaskState.RUNNING and (self._item.released or not ran)

    def _is_given_up(self) -> bool:
        """The managers forgot the task, or gave its place to another while nobody heard of this node."""
        return self._gone or self.task.status.state == TaskState.ORPHANED

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._wake.clear()
            await self._wake.wait()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, given up when the task should stop. Raises `_Stop` then."""
        return await self._unless(self._may_stop, work)

    async def _unless(self, over: Callable[[], bool], work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, unless `over` holds before. Raises `_Stop` then."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._until(over))
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise _Stop
            return await working
        finally:
            for future in (working, stopping):
                future.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _insist(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        """Repeat until it succeeds."""
        delay = RETRY_FIRST
        while True:
            try:
                await work()
                return
            except (HivemeshError, OSError) as error:
                log.warning("task %s: cannot %s it, trying again in %g s: %s", self.task.name, what, delay, error)
            await self._clock.sleep(delay)
            delay = min(2 * delay, RETRY_LAST)

    def _say(
        self, state: TaskState, message: str, *, err: str = "", exit_code: int = 0, unhealthy: bool = False
    ) -> None:
        if state < self._status.state:
            return
        open_ports = TaskState.STARTING <= state <= TaskState.RUNNING
        self._status = TaskStatus(
            timestamp=self._clock.now(),
            state=state,
            message=message,
            err=err,
            container_id=self._container,
            pid=0 if state.dead else self._pid,
            exit_code=exit_code,
            unhealthy=unhealthy,
            ports=self._sandboxes.host_ports(self.task) if open_ports else (),
        )
        log.debug("task %s: %s %s", self.task.name, state.name, err)
        self._sandboxes.report(self.task.id, self._status)


def _lives_in(pid: int, netns: str) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat(netns))
    except OSError:  # it just ended: whoever waits for it will say so
        return True
