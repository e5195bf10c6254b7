"""Plain containers on networks of ours (`docker run --network mynet`): a sandbox whenever they run, none otherwise.

    create   the engine makes the container in the path of a namespace that is still to come
    begin    managers grant addresses -> sandbox wired and resolving -> the engine starts the process
    end      the process is gone -> sandbox removed -> managers told, names and addresses go

What stays true
- A process of such a container never runs without its sandbox: whoever starts it around us finds no namespace.
- The engine's word is what runs, the record on disk is what was asked, the managers' view is what is held. A restart
  compares the three: running containers are adopted, what is held for others is given back.
- Restart policies are ours: the engine's own would begin the process before its sandbox.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from hivemesh.agent import records
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.records import Member, Record
from hivemesh.clock import Clock
from hivemesh.dataplane.plan.names import sandbox_namespace
from hivemesh.dns.hostconf import read_host_conf
from hivemesh.engine.api import ContainerInfo, Engine
from hivemesh.kernel import netns
from hivemesh.model.addr import address_of
from hivemesh.model.errors import Forbidden, HivemeshError, NotFound
from hivemesh.model.ids import NetworkID, TaskID, new_id, short
from hivemesh.model.service import PortConfig
from hivemesh.model.task import Task
from hivemesh.wire.control import AttachReply, AttachRequest, Joining, TaskItem, View
from hivemesh.wire.engine.containers import LABEL, Membership, Shown, Wish

log = logging.getLogger("hivemesh.attached")

RETRY_FIRST, RETRY_LAST = 0.5, 30.0
"""Seconds between attempts to ask the engine or to tell the managers, doubled each time."""
RESTART_FIRST, RESTART_LAST = 0.1, 60.0
"""Seconds until a container that ended begins again, doubled each time (Docker's numbers)."""
LOOK_PAUSE = 0.05
"""Seconds between two looks at a container that ends and begins."""
SETTLED = 10.0
"""Seconds a container must have run for that delay to be the first again (Docker's number)."""
RELEASE_TIMEOUT = 10.0
"""Seconds `docker stop` waits for what follows the end of the process; it goes on behind it."""
REMOVAL_LOOKS, REMOVAL_PAUSE = 40, 0.25
"""How long after its end a container may be removed by the engine itself (`--rm`) for us to notice at once."""

T = TypeVar("T")


class Managers(Protocol):
    """Whoever grants addresses."""

    async def attach(self, request: AttachRequest) -> AttachReply: ...
    async def detach(self, task: TaskID) -> None: ...


class Sandboxes(Protocol):
    """`agent.network.NodeNetwork`."""

    async def attach(self, task: Task) -> str: ...
    async def detach(self, task: TaskID) -> None: ...
    def files(self, task: Task, hostname: str) -> dict[str, str]: ...
    def host_ports(self, task: TaskID) -> tuple[PortConfig, ...]: ...


@dataclass(slots=True)
class Place:
    """Where the engine is to make a container. The caller says what became of it: its id and name."""

    owner: TaskID
    namespace: str
    files: dict[str, str]
    container: str = ""
    name: str = ""


@dataclass(slots=True)
class _Entry:
    record: Record
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while it begins, ends or changes networks
    follower: "asyncio.Task[None] | None" = None
    hurry: asyncio.Event = field(default_factory=asyncio.Event)  # do not wait for its turn to begin again
    watchers: int = 0  # who follow its output
    began: float = 0.0
    delay: float = RESTART_FIRST

    @property
    def up(self) -> bool:
        """It has addresses and a sandbox, or is about to."""
        return self.record.granted is not None


class AttachedContainers:
    """This node's. Callers hand in the engine's own part of a verb as `work`, which is called at the right moment."""

    def __init__(
        self, *, sandboxes: Sandboxes, managers: Managers, engine: Engine, directory: Path, clock: Clock
    ) -> None:
        self._sandboxes = sandboxes
        self._managers = managers
        self._engine = engine
        self._clock = clock
        self._path = directory / "attached.json"
        self._files = SandboxFiles(directory / "sandboxes")
        self._entries = {owner: _Entry(record) for owner, record in records.load(self._path).items()}
        self._held: set[TaskID] = set()  # by the managers' word
        self._told: set[TaskID] = set()  # given back, though the view may not show it yet
        self._owed: set[TaskID] = set()  # to be given back, though the view may not show it yet
        self._unknown: set[TaskID] | None = None  # run, and were unknown to the managers when they first spoke
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._works: set[asyncio.Task[Any]] = set()

    def assign(self, view: View) -> None:
        """What the managers hold for containers of this node. Returns at once."""
        self._held = {item.task.id for item in view.values() if isinstance(item, TaskItem) and item.task.attached}
        self._told &= self._held
        if self._unknown is None:
            self._unknown = {owner for owner, entry in self._entries.items() if entry.up} - self._held
        self._wake.set()

    async def run(self) -> None:
        """Adopt what runs, and keep the three words in agreement. Cancelling leaves containers as they are."""
        try:
            await self._adopt()
            self._ready.set()
            await self._agree()
        finally:
            for work in self._works:
                work.cancel()
            await asyncio.gather(*self._works, return_exceptions=True)

    # --- what callers ask -----------------------------------------------------------------------------------------

    def owner_of(self, container: str) -> TaskID | None:
        """By the engine's id; None when the container is none of ours."""
        return next((o for o, entry in self._entries.items() if entry.record.container == container), None)

    @property
    def any(self) -> bool:
        """Whether there are such containers at all."""
        return bool(self._entries)

    async def check(self, networks: Iterable[str]) -> None:
        """Raises `NotFound` when one of them is no network of the swarm, and what `creating` would raise for all."""
        wanted = tuple(Joining(network=network) for network in networks)
        await self._managers.attach(AttachRequest(task=TaskID(new_id()), container="-", networks=wanted, check=True))

    def is_member(self, owner: TaskID, network: str) -> bool:
        """Whether the container is on the network of that name or id."""
        return any(network in (member.name, member.id) for member in self._entries[owner].record.members)

    @asynccontextmanager
    async def creating(self, wish: Wish, name: str) -> AsyncIterator[Place]:
        """A place for a container to be made in. If the caller says nothing of it, nothing remains.

        Raises `NotFound` (a network), `Forbidden`, `Invalid`, `Conflict` or `Unavailable`, before anything is made.
        """
        await self.tidy()
        owner = TaskID(new_id())
        request = AttachRequest(
            task=owner, container=name or owner, networks=wish.networks, spec=wish.spec, ports=wish.ports, check=True
        )
        reply = await self._managers.attach(request)
        record = Record(
            owner=owner, name=name, mode=wish.mode, members=_members(reply, wish.networks), spec=wish.spec,
            ports=wish.ports, restart=wish.restart, remove=wish.remove, stopped=True,
        )  # fmt: skip
        entry = self._entries[owner] = _Entry(record)
        place = Place(owner, netns.path(sandbox_namespace(owner)), {})
        try:
            task = msgspec.structs.replace(reply.task, attachments=())
            place.files = self._files.write(task, {}, read_host_conf(), wish.spec.hostname)
            self._set(entry, files=place.files)
            with netns.reserved(sandbox_namespace(owner)):
                yield place
        finally:
            if place.container:
                self._set(entry, container=place.container, name=place.name)
            else:
                self._forget(entry)

    async def start(self, owner: TaskID, work: Callable[[], Awaitable[T]]) -> T:
        """`work` starts the process, unless it runs. Not cut short when the caller is."""
        return await self._alone(owner, lambda entry: self._begin(entry, work))

    @asynccontextmanager
    async def looked_into(self, owner: TaskID) -> AsyncIterator[None]:
        """While somebody follows its output. The engine puts a container that does not run into its namespaces for
        that, so that nothing is lost when it starts: they must be there.
        """
        entry = await self._alone(owner, self._prepare)
        entry.watchers += 1
        try:
            yield
        finally:
            entry.watchers -= 1
            self._spawn(self._leave_alone(entry), f"leave {entry.record.name}")

    async def restart(self, owner: TaskID, work: Callable[[], Awaitable[T]]) -> T:
        """`work` ends the process, if it runs, and starts it again: its sandbox stays."""
        return await self._alone(owner, lambda entry: self._begin(entry, work, again=True))

    async def stop(self, owner: TaskID, work: Callable[[], Awaitable[T]]) -> T:
        """`work` should end the process. Returns when what belongs to it is given back, if it did."""
        entry = await self._entry(owner)
        self._set(entry, stopped=True)
        entry.hurry.set()
        result = await work()
        if entry.follower is not None:
            with suppress(HivemeshError):
                if not _runs(await self._look(entry)):
                    await asyncio.wait({entry.follower}, timeout=RELEASE_TIMEOUT)
        return result

    async def remove(self, owner: TaskID, work: Callable[[], Awaitable[T]]) -> T:
        """`work` removes the container, if it may."""
        entry = await self._entry(owner)
        result = await work()
        async with entry.lock:
            if await self._look(entry) is None:
                await self._end(entry)
                self._forget(entry)
        return result

    async def tidy(self) -> None:
        """Forget containers that the engine does not have any more."""
        await self._ready.wait()
        found = await self._found() if self._entries else {}
        for entry in [e for e in self._entries.values() if e.record.container and e.record.owner not in found]:
            async with entry.lock:
                await self._end(entry)
                self._forget(entry)

    async def rename(self, owner: TaskID, name: str) -> None:
        """The container goes by another name now."""

        async def rename(entry: _Entry) -> None:
            self._set(entry, name=name)
            if entry.up:
                reply = await self._managers.attach(_request(entry.record))
                self._set(entry, granted=reply.task)

        await self._alone(owner, rename)

    async def connect(self, owner: TaskID, joining: Joining) -> None:
        """Onto one more network, at once if it runs. Raises `Forbidden` when it is there already, and as `creating`."""

        async def connect(entry: _Entry) -> None:
            record = entry.record
            extended = (*_joinings(record), joining)
            if self.is_member(owner, joining.network):
                raise Forbidden(f"endpoint with name {record.name} already exists in network {joining.network}")
            await self._change(entry, extended)

        await self._alone(owner, connect)

    async def disconnect(self, owner: TaskID, network: str) -> None:
        """Off the network of that name, id or beginning of an id. Raises `HivemeshError` when it is not on it."""

        async def disconnect(entry: _Entry) -> None:
            record = entry.record
            member = next((m for m in record.members if network in (m.name, m.id)), None)
            member = member or next((m for m in record.members if network and m.id.startswith(network)), None)
            if member is None:
                raise HivemeshError(f"container {record.container} is not connected to the network {network}")
            await self._change(entry, tuple(j for j in _joinings(record) if j.network != member.name))

        await self._alone(owner, disconnect)

    def shown(self, owner: TaskID) -> Shown:
        """Everything that only we know of a container."""
        record = self._entries[owner].record
        return Shown(
            mode=record.mode,
            networks=tuple(_membership(record, member) for member in record.members),
            spec=record.spec,
            ports=record.ports,
            published=self._sandboxes.host_ports(owner) if record.granted is not None else (),
            restart=record.restart,
            restarts=record.restarts,
            files=record.files,
            namespace=netns.path(sandbox_namespace(owner)) if record.granted is not None else "",
        )

    # --- one container ----------------------------------------------------------------------------------------------

    async def _begin(self, entry: _Entry, work: Callable[[], Awaitable[T]], *, again: bool = False) -> T:
        info = await self._look(entry)
        if info is None:
            raise NotFound(f"No such container: {entry.record.name or entry.record.container}")
        self._set(entry, stopped=False)
        if _runs(info) and not again:
            return await work()
        if not _runs(info):
            await self._prepare(entry)
        try:
            return await work()
        finally:
            if _runs(await self._look(entry)):
                self._follow(entry)
            else:
                await self._end(entry)

    async def _prepare(self, entry: _Entry) -> _Entry:
        info = await self._look(entry)
        if info is not None and not _runs(info) and not entry.up:
            await self._engine.stop(info.id, "", 0)  # it may be in namespaces that are gone
            await self._up(entry)
        return entry

    async def _leave_alone(self, entry: _Entry) -> None:
        """Whoever looked at it went away; perhaps nobody ever started it."""
        async with entry.lock:
            following = entry.follower is not None and not entry.follower.done()
            if entry.watchers or following or not entry.up:
                return
            info = await self._look(entry)
            if info is not None and not _runs(info):
                await self._engine.stop(info.id, "", 0)
            if not _runs(info):
                await self._end(entry)

    async def _up(self, entry: _Entry) -> None:
        reply = await self._managers.attach(_request(entry.record))
        self._told.discard(entry.record.owner)
        self._set(entry, granted=reply.task, members=_members(reply, _joinings(entry.record)))
        try:
            await self._wire(entry.record)
        except BaseException:
            await self._end(entry)
            raise

    async def _wire(self, record: Record) -> None:
        assert record.granted is not None
        await self._sandboxes.attach(record.granted)
        self._sandboxes.files(record.granted, record.spec.hostname or short(record.container))

    async def _end(self, entry: _Entry) -> None:
        """Nothing of it runs: give everything back."""
        if not entry.up:
            return
        owner = entry.record.owner
        await self._sandboxes.detach(owner)
        self._set(entry, granted=None)
        self._owed.add(owner)
        await self._tell(owner)

    async def _tell(self, owner: TaskID) -> bool:
        """Whether the managers know that it holds nothing any more; else it is tried again."""
        try:
            await self._managers.detach(owner)
        except HivemeshError as error:
            log.warning("cannot tell the managers that a container has left its networks, trying again: %s", error)
            self._wake.set()
            return False
        self._owed.discard(owner)
        self._told.add(owner)
        return True

    async def _change(self, entry: _Entry, joinings: tuple[Joining, ...]) -> None:
        """Onto exactly these networks, or not at all."""
        before = entry.record
        reply = await self._managers.attach(_request(before, joinings, check=not entry.up))
        changed = msgspec.structs.replace(before, members=_members(reply, joinings))
        if entry.up:
            changed = msgspec.structs.replace(changed, granted=reply.task)
            try:
                await self._wire(changed)
            except BaseException:
                await self._managers.attach(_request(before))
                await self._wire(before)
                raise
        entry.record = changed
        self._save()

    def _follow(self, entry: _Entry) -> None:
        entry.began = self._clock.now()
        if entry.follower is None or entry.follower.done():
            entry.follower = self._spawn(self._followed(entry), f"follow {entry.record.name}")

    async def _followed(self, entry: _Entry) -> None:
        """From one end of its process to the last."""
        while True:
            try:
                code = await self._engine.wait(entry.record.container)
                async with entry.lock:
                    info = await self._look(entry)
                    pause = self._pause(entry, info, code)
                    if pause is None:
                        await self._end(entry)
                        break
                await self._next(entry, pause)
            except (HivemeshError, OSError) as error:
                log.warning("container %s: %s", entry.record.name, error)
                await self._clock.sleep(RETRY_FIRST)
        if entry.record.remove:
            await self._removed(entry)

    def _pause(self, entry: _Entry, info: ContainerInfo | None, code: int) -> float | None:
        """Seconds until it begins again; None when it does not."""
        record, rule = entry.record, entry.record.restart
        if _runs(info):  # it has begun already: `docker restart`
            return LOOK_PAUSE
        if info is None or record.stopped or rule.name == "no" or (rule.name == "on-failure" and code == 0):
            return None
        if rule.retries and record.restarts >= rule.retries:
            return None
        if self._clock.now() - entry.began > SETTLED:
            entry.delay = RESTART_FIRST
        pause, entry.delay = entry.delay, min(2 * entry.delay, RESTART_LAST)
        return pause

    async def _next(self, entry: _Entry, pause: float) -> None:
        """Begin again after `pause`; the sandbox stays meanwhile."""
        with suppress(TimeoutError):
            entry.hurry.clear()
            await asyncio.wait_for(entry.hurry.wait(), pause)
        async with entry.lock:
            if not entry.record.stopped and not _runs(await self._look(entry)):
                self._set(entry, restarts=entry.record.restarts + 1)
                if not entry.up:
                    await self._up(entry)
                await self._engine.start(entry.record.container)
                entry.began = self._clock.now()

    async def _removed(self, entry: _Entry) -> None:
        for _ in range(REMOVAL_LOOKS):
            async with entry.lock:
                if await self._look(entry) is None:
                    self._forget(entry)
                    return
            await asyncio.sleep(REMOVAL_PAUSE)

    # --- all of them ------------------------------------------------------------------------------------------------

    async def _adopt(self) -> None:
        """See what runs, as soon as the engine says."""
        delay, found = RETRY_FIRST, None
        while self._entries and found is None:
            try:
                found = await self._found()
            except HivemeshError as error:
                log.warning("the engine does not say which containers it has, asking again in %g s: %s", delay, error)
                await self._clock.sleep(delay)
                delay = min(2 * delay, RETRY_LAST)
        for owner, entry in list(self._entries.items()):
            info = (found or {}).get(owner)
            if info is None:
                await self._end(entry)
                self._forget(entry)
                continue
            self._set(entry, container=info.id, name=info.name)
            if info.state == "initialized":
                await self._engine.stop(info.id, "", 0)
            begins = entry.record.restart.name in ("always", "unless-stopped") and not entry.record.stopped
            if _runs(info):
                self._spawn(self._resume(entry), f"adopt {info.name}")
            elif begins:
                self._spawn(self._begin_again(entry), f"begin {info.name}")
            else:
                await self._end(entry)

    async def _resume(self, entry: _Entry) -> None:
        """It ran on while there was no daemon."""
        async with entry.lock:
            try:
                if entry.up:
                    await self._wire(entry.record)
                else:
                    await self._up(entry)
                log.info("adopted the container %s", entry.record.name)
            except HivemeshError as error:
                log.warning("the sandbox of container %s cannot be brought in order: %s", entry.record.name, error)
            self._follow(entry)

    async def _begin_again(self, entry: _Entry) -> None:
        async def start() -> None:
            await self._engine.start(entry.record.container)

        async with entry.lock:
            try:
                await self._begin(entry, start)
            except HivemeshError as error:
                log.warning("container %s does not start: %s", entry.record.name, error)

    async def _agree(self) -> None:
        """With the managers: give back what nobody uses, claim what runs and they do not know of."""
        delay = RETRY_FIRST
        while True:
            await self._wake.wait()
            self._wake.clear()
            idle = [owner for owner in self._held | self._owed if owner not in self._told and not self._is_up(owner)]
            outcomes = [await self._give_back(owner) for owner in idle]
            unknown, self._unknown = self._unknown or set(), set()
            for owner in unknown:
                if not await self._claim(owner):
                    self._unknown.add(owner)
            if all(outcomes) and not self._unknown:
                delay = RETRY_FIRST
            else:
                self._wake.clear()
                asyncio.get_running_loop().call_later(delay, self._wake.set)
                delay = min(2 * delay, RETRY_LAST)

    async def _give_back(self, owner: TaskID) -> bool:
        entry = self._entries.get(owner)
        async with entry.lock if entry is not None else asyncio.Lock():
            if self._is_up(owner):  # it began meanwhile
                return True
            await self._sandboxes.detach(owner)  # left by a daemon that ended half-way
            return await self._tell(owner)

    async def _claim(self, owner: TaskID) -> bool:
        entry = self._entries.get(owner)
        if entry is None:
            return True
        async with entry.lock:
            record = entry.record
            if record.granted is None:
                return True
            held = {a.network_id: tuple(map(address_of, a.addresses)) for a in record.granted.attachments}
            joinings = tuple(
                Joining(network=member.name, aliases=member.aliases, addresses=held.get(member.id, ()))
                for member in record.members
            )
            try:
                reply = await self._managers.attach(_request(record, joinings))
                self._set(entry, granted=reply.task)
                await self._wire(entry.record)
            except HivemeshError as error:
                log.warning("the managers do not know container %s, and refuse it: %s", record.name, error)
                return False
        return True

    def _is_up(self, owner: TaskID) -> bool:
        entry = self._entries.get(owner)
        return entry is not None and entry.up

    # --- help -------------------------------------------------------------------------------------------------------

    async def _entry(self, owner: TaskID) -> _Entry:
        await self._ready.wait()
        try:
            return self._entries[owner]
        except KeyError:
            raise NotFound("No such container: it was removed a moment ago") from None

    async def _alone(self, owner: TaskID, work: Callable[[_Entry], Awaitable[T]]) -> T:
        """One change of a container at a time, which runs to its end though the caller hangs up."""
        entry = await self._entry(owner)

        async def run() -> T:
            async with entry.lock:
                return await work(entry)

        return await asyncio.shield(self._spawn(run(), f"container {entry.record.name}"))

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name=name)
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        return task

    async def _found(self) -> dict[TaskID, ContainerInfo]:
        return {TaskID(info.labels[LABEL]): info for info in await self._engine.list(LABEL)}

    async def _look(self, entry: _Entry) -> ContainerInfo | None:
        return (await self._found()).get(entry.record.owner)

    def _set(self, entry: _Entry, **changes: Any) -> None:
        changed = msgspec.structs.replace(entry.record, **changes)
        if changed != entry.record:
            entry.record = changed
            self._save()

    def _forget(self, entry: _Entry) -> None:
        self._set(entry, stopped=True)
        entry.hurry.set()
        self._entries.pop(entry.record.owner, None)
        self._files.remove(entry.record.owner)
        self._save()

    def _save(self) -> None:
        try:
            records.save(self._path, [entry.record for entry in self._entries.values()])
        except OSError as error:
            log.error("cannot save which containers are on which networks: %s", error)


def _runs(info: ContainerInfo | None) -> bool:
    return info is not None and info.state == "running"


def _joinings(record: Record) -> tuple[Joining, ...]:
    """By name: a network that was removed and made again is the same to its users."""
    return tuple(Joining(network=m.name, aliases=m.aliases, addresses=m.addresses) for m in record.members)


def _members(reply: AttachReply, joinings: tuple[Joining, ...]) -> tuple[Member, ...]:
    return tuple(
        Member(id=NetworkID(config.target), name=name, aliases=config.aliases, addresses=joining.addresses)
        for config, name, joining in zip(reply.task.spec.networks, reply.names, joinings, strict=True)
    )


def _request(record: Record, joinings: tuple[Joining, ...] | None = None, *, check: bool = False) -> AttachRequest:
    return AttachRequest(
        task=record.owner,
        container=record.name,
        container_id=record.container,
        networks=_joinings(record) if joinings is None else joinings,
        spec=record.spec,
        ports=record.ports,
        check=check,
    )


def _membership(record: Record, member: Member) -> Membership:
    shown = Membership(
        name=member.name,
        network_id=member.id,
        aliases=member.aliases,
        wanted=tuple(map(str, member.addresses)),
        names=tuple(
            dict.fromkeys(n for n in (record.name, *member.aliases, short(record.container), record.spec.hostname) if n)
        ),
    )
    for attachment in record.granted.attachments if record.granted is not None else ():
        if attachment.network_id == member.id:
            return replace(
                shown,
                endpoint_id=attachment.endpoint_id,
                mac=attachment.mac,
                v4=next((str(address) for address in attachment.addresses if address.version == 4), ""),
                v6=next((str(address) for address in attachment.addresses if address.version == 6), ""),
            )
    return shown
