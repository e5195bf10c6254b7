"""One plain container on networks of ours, from the moment the engine has it until it is removed.

begin   managers grant addresses -> sandbox wired and resolving -> the engine starts the process
end     the process is gone -> sandbox removed -> managers told, names and addresses go
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.records import LocalRequest, Record, joinings_of, members_of
from hivemesh.clock import Clock
from hivemesh.engine.api import ContainerInfo, Engine
from hivemesh.model.addr import address_of
from hivemesh.model.errors import HivemeshError, NotFound
from hivemesh.model.ids import TaskID, short
from hivemesh.model.task import Task
from hivemesh.wire.control import AttachReply, AttachRequest, Joining
from hivemesh.wire.engine.containers import LABEL

log = logging.getLogger("hivemesh.attached")

RETRY = 0.5
"""Seconds until the engine is asked again when it did not say how a container is."""
RESTART_FIRST, RESTART_LAST = 0.1, 60.0
"""Seconds until a container that ended begins again, doubled each time (Docker's numbers)."""
SETTLED = 10.0
"""Seconds a container must have run for that delay to be the first again (Docker's number)."""
LOOK_PAUSE = 0.05
"""Seconds between two looks at a container that ends and begins."""
RELEASE_TIMEOUT = 10.0
"""Seconds `docker stop` waits for what follows the end of the process; it goes on behind it."""
REMOVAL_LOOKS, REMOVAL_PAUSE = 40, 0.25
"""How long after its end a container may be removed by the engine itself (`--rm`) for us to notice at once."""

T = TypeVar("T")
Work = Callable[[], Awaitable[T]]


class Managers(Protocol):
    """Whoever grants addresses."""

    async def attach(self, request: AttachRequest) -> AttachReply: ...
    async def detach(self, task: TaskID) -> None: ...


class Sandboxes(Protocol):
    """`agent.network.NodeNetwork`."""

    async def attach(self, task: Task) -> str: ...
    async def detach(self, task: TaskID) -> None: ...
    def files(self, task: Task, hostname: str, into: SandboxFiles | None = None) -> dict[str, str]: ...


class Home(Protocol):
    """Who keeps all containers: `agent.attached.AttachedContainers`."""

    def save(self) -> None:
        """A record changed."""
        ...

    def forget(self, owner: TaskID) -> None:
        """The engine has no such container any more."""
        ...

    async def give_back(self, owner: TaskID) -> bool:
        """The container holds nothing any more; whether the managers could be told, else they will be."""
        ...

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]": ...


@dataclass(frozen=True, slots=True)
class Means:
    """What a container needs of its node."""

    home: Home
    sandboxes: Sandboxes
    managers: Managers
    engine: Engine
    clock: Clock
    files: SandboxFiles


class PlainContainer:
    """Whoever calls a method that begins, ends or changes it holds `lock`."""

    def __init__(self, record: Record, means: Means) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self._means = means
        self._follower: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()  # do not wait for its turn to begin again
        self._watchers = 0
        self._began = 0.0
        self._delay = RESTART_FIRST

    @property
    def up(self) -> bool:
        """It has addresses and a sandbox, or is about to."""
        return self.record.granted is not None

    def set(self, **changes: Any) -> None:
        changed = msgspec.structs.replace(self.record, **changes)
        if changed != self.record:
            self.record = changed
            self._means.home.save()

    async def look(self) -> ContainerInfo | None:
        """What the engine says of it; None when it has no such container. Raises `EngineError`."""
        found = await self._means.engine.list(LABEL)
        return next((info for info in found if info.labels[LABEL] == self.record.owner), None)

    # --- beginning --------------------------------------------------------------------------------------------------

    async def begin(self, work: Work[T], *, again: bool = False) -> T:
        """`work` starts the process; with `again` also one that runs, by ending it first: then its sandbox stays."""
        info = await self.look()
        if info is None:
            raise NotFound(f"No such container: {self.record.name or self.record.container}")
        self.set(stopped=False)
        if runs(info) and not again:
            return await work()
        await self.prepare()
        try:
            return await work()
        finally:
            if await self._may_run():
                self.follow()
            else:
                await self.end()

    async def _may_run(self) -> bool:
        """It runs, or the engine does not say: whoever follows it will ask again."""
        try:
            return runs(await self.look())
        except HivemeshError as error:
            log.warning("container %s: %s", self.record.name, error)
            return True

    async def begin_again(self) -> None:
        """As its restart policy wants it when the daemon starts."""

        async def start() -> None:
            await self._means.engine.start(self.record.container)

        delay = RESTART_FIRST
        while not self.record.stopped:
            async with self.lock:
                try:
                    if self.up:  # it ended while there was no daemon
                        await self.wire(self.record)
                    await self.begin(start)
                    return
                except NotFound:  # it was removed meanwhile
                    return
                except HivemeshError as error:
                    log.warning("container %s does not start, trying again in %g s: %s", self.record.name, delay, error)
            await self._means.clock.sleep(delay)
            delay = min(2 * delay, RESTART_LAST)

    async def prepare(self) -> None:
        """Addresses and a sandbox, unless it has them."""
        if self.up:
            return
        await self.leave_namespaces()
        reply = await self._means.managers.attach(request_of(self.record))
        self.set(granted=reply.task, members=members_of(reply, joinings_of(self.record)))
        try:
            await self.wire(self.record)
        except BaseException:
            await self.end()
            raise

    async def wire(self, record: Record) -> None:
        """The sandbox as granted, and the files that go with it."""
        assert record.granted is not None
        await self._means.sandboxes.attach(record.granted)
        hostname = record.spec.hostname or short(record.container)
        self._means.sandboxes.files(record.granted, hostname, self._means.files)

    async def leave_namespaces(self) -> None:
        """The engine may have put a process that never began into namespaces that are gone by now."""
        info = await self.look()
        if info is not None and info.state == "initialized":
            await self._means.engine.stop(info.id, "", 0)

    # --- while it runs ----------------------------------------------------------------------------------------------

    async def watched(self) -> None:
        """Somebody follows its output from now on; without `lock`."""
        async with self.lock:
            await self.prepare()
            self._watchers += 1

    async def unwatched(self) -> None:
        """They went away; perhaps nobody ever started it."""
        async with self.lock:
            self._watchers -= 1
            if self._watchers or self._followed or not self.up or runs(await self.look()):
                return
            await self.leave_namespaces()
            await self.end()

    async def change(self, joinings: tuple[Joining, ...]) -> None:
        """Onto exactly these networks, or not at all."""
        before, managers = self.record, self._means.managers
        reply = await managers.attach(request_of(before, joinings, check=not self.up))
        changed = msgspec.structs.replace(before, members=members_of(reply, joinings))
        if self.up:
            changed = msgspec.structs.replace(changed, granted=reply.task)
            try:
                await self.wire(changed)
            except BaseException:
                await managers.attach(request_of(before))
                await self.wire(before)
                raise
        self.record = changed
        self._means.home.save()

    async def rename(self, name: str) -> None:
        self.set(name=name)
        if self.up:
            reply = await self._means.managers.attach(request_of(self.record))
            self.set(granted=reply.task)

    async def claim(self) -> None:
        """The managers know nothing of it, and it runs: what it has shall be its own."""
        task = self.record.granted
        if task is None:
            return
        held = {a.network_id: tuple(map(address_of, a.addresses)) for a in task.attachments}
        joinings = tuple(
            msgspec.structs.replace(joining, addresses=held.get(member.id, ()))
            for member, joining in zip(self.record.members, joinings_of(self.record), strict=True)
        )
        reply = await self._means.managers.attach(request_of(self.record, joinings))
        self.set(granted=reply.task)
        await self.wire(self.record)

    # --- ending -----------------------------------------------------------------------------------------------------

    async def stop(self, work: Work[T]) -> T:
        """`work` should end the process for good. Returns when what belongs to it is given back, if it did."""
        self.set(stopped=True)
        self._hurry.set()
        result = await work()
        if self._follower is not None:
            with suppress(HivemeshError):
                if not runs(await self.look()):
                    await asyncio.wait({self._follower}, timeout=RELEASE_TIMEOUT)
        return result

    async def end(self) -> None:
        """Nothing of it runs: give everything back."""
        if self.up:
            await self._means.sandboxes.detach(self.record.owner)
            self.set(granted=None)
            await self._means.home.give_back(self.record.owner)

    async def vanish(self) -> None:
        """The engine has removed it."""
        await self.end()
        self.record = msgspec.structs.replace(self.record, stopped=True)
        self._hurry.set()
        self._means.home.forget(self.record.owner)

    # --- following it -----------------------------------------------------------------------------------------------

    @property
    def _followed(self) -> bool:
        return self._follower is not None and not self._follower.done()

    def follow(self) -> None:
        """It runs: see to what comes after."""
        self._began = self._means.clock.steady()
        if not self._followed:
            self._follower = self._means.home.spawn(self._follow(), f"follow {self.record.name}")

    async def _follow(self) -> None:
        """From one end of its process to the last."""
        while True:
            try:
                code = await self._means.engine.wait(self.record.container)
                async with self.lock:
                    info = await self.look()
                    pause = self._pause(info, code)
                    if pause is None:
                        await self.end()
                        break
                await self._next(pause)
            except (HivemeshError, OSError) as error:
                log.warning("container %s: %s", self.record.name, error)
                await self._means.clock.sleep(RETRY)
        if self.record.remove:
            await self._await_removal()

    def _pause(self, info: ContainerInfo | None, code: int) -> float | None:
        """Seconds until it begins again; None when it does not."""
        record, rule = self.record, self.record.restart
        if runs(info):  # it has begun already: `docker restart`
            return LOOK_PAUSE
        if info is None or record.stopped or rule.name == "no" or (rule.name == "on-failure" and code == 0):
            return None
        if rule.retries and record.restarts >= rule.retries:
            return None
        if self._means.clock.steady() - self._began > SETTLED:
            self._delay = RESTART_FIRST
        pause, self._delay = self._delay, min(2 * self._delay, RESTART_LAST)
        return pause

    async def _next(self, pause: float) -> None:
        """Begin again after `pause`; the sandbox stays meanwhile."""
        self._hurry.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), pause)
        async with self.lock:
            if not self.record.stopped and not runs(await self.look()):
                self.set(restarts=self.record.restarts + 1)
                await self.prepare()
                await self._means.engine.start(self.record.container)
                self._began = self._means.clock.steady()

    async def _await_removal(self) -> None:
        for _ in range(REMOVAL_LOOKS):
            async with self.lock:
                if await self.look() is None:
                    await self.vanish()
                    return
            await self._means.clock.sleep(REMOVAL_PAUSE)


def runs(info: ContainerInfo | None) -> bool:
    return info is not None and info.state == "running"


def request_of(record: Record, joinings: tuple[Joining, ...] | None = None, *, check: bool = False) -> LocalRequest:
    """What is asked for the container; on `joinings` instead of its own networks."""
    return LocalRequest(
        task=record.owner,
        container=record.name or record.owner,
        container_id=record.container,
        networks=joinings_of(record) if joinings is None else joinings,
        spec=record.spec,
        published=record.ports,
        links=record.links,
        check=check,
    )
