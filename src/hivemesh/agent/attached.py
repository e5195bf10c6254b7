"""Plain containers on networks of ours (`docker run --network mynet`): a sandbox whenever they run, none otherwise.

What stays true
- A process of such a container never runs without its sandbox: whoever starts it around us finds no namespace.
- The engine's word is what runs, the record on disk is what was asked, the managers' view is what is held. A restart
  compares the three: running containers are adopted, what is held for others is given back.
- Restart policies are ours: the engine's own would begin the process before its sandbox.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hivemesh.agent import records
from hivemesh.agent.container import Managers, Means, PlainContainer, Sandboxes, Work, request_of, runs
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.grants import Grants
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.records import Member, Record, joinings_of, members_of
from hivemesh.clock import Clock
from hivemesh.dataplane.plan.names import sandbox_namespace
from hivemesh.dns.hostconf import read_host_conf
from hivemesh.engine.api import ContainerInfo, Engine
from hivemesh.kernel import netns
from hivemesh.model.errors import Forbidden, HivemeshError, Invalid, NotFound
from hivemesh.model.ids import NetworkID, TaskID, new_id, short
from hivemesh.model.local import LocalNetwork
from hivemesh.wire.control import AttachRequest, Joining, TaskItem, View
from hivemesh.wire.engine.containers import LABEL, Membership, Shown, Wish

log = logging.getLogger("hivemesh.attached")

FILE = "attached.json"
RETRY_FIRST, RETRY_LAST = 0.5, 30.0
"""Seconds between attempts to ask the engine or to tell the managers, doubled each time."""

T = TypeVar("T")


@dataclass(slots=True)
class Place:
    """Where the engine is to make a container. The caller says what became of it: its id and name."""

    owner: TaskID
    namespace: str
    files: dict[str, str]
    container: str = ""
    name: str = ""


class AttachedContainers:
    """This node's. Callers hand in the engine's own part of a verb as `work`, which is called at the right moment.

    No verb is cut short when its caller is.
    """

    def __init__(
        self,
        *,
        sandboxes: Sandboxes,
        files: SandboxFiles,
        managers: Managers,
        engine: Engine,
        directory: Path,
        clock: Clock,
        local: LocalNetworks,
    ) -> None:
        self._means = Means(self, sandboxes, managers, engine, clock, files)
        self._local = local
        self._files = files
        self._path = directory / FILE
        self._containers = {
            owner: PlainContainer(record, self._means) for owner, record in records.load(self._path).items()
        }
        for container in self._containers.values():
            if container.record.granted is not None and isinstance(managers, Grants):
                managers.adopt(container.record.granted)
        if self._containers:
            local.needed.set()
        self._held: set[TaskID] = set()  # by the managers' word
        self._told: set[TaskID] = set()  # given back, though the view may not show it yet
        self._owed: set[TaskID] = set()  # to be given back, though the view may not show it yet
        self._unknown: set[TaskID] | None = None  # run, and were unknown to the managers when they first spoke
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._adoptions: list[asyncio.Task[None]] = []
        self._works: set[asyncio.Task[Any]] = set()

    def assign(self, view: View) -> None:
        """What the managers hold for containers of this node. Returns at once."""
        self._held = {item.task.id for item in view.values() if isinstance(item, TaskItem) and item.task.attached}
        self._told &= self._held
        if self._unknown is None:
            self._unknown = {owner for owner, container in self._containers.items() if container.up} - self._held
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

    async def adopted(self) -> None:
        """Until what ran when `run` began has its networks again."""
        await self._ready.wait()
        await asyncio.gather(*self._adoptions, return_exceptions=True)

    # --- asking about them ------------------------------------------------------------------------------------------

    @property
    def any(self) -> bool:
        """Whether there are such containers at all."""
        return bool(self._containers)

    @property
    def networks(self) -> frozenset[NetworkID]:
        """Those that some container is on whenever it runs."""
        return frozenset(member.id for container in self._containers.values() for member in container.record.members)

    def owner_of(self, container: str) -> TaskID | None:
        """By the engine's id; None when the container is none of ours."""
        return next((owner for owner, c in self._containers.items() if c.record.container == container), None)

    def is_member(self, owner: TaskID, network: str) -> bool:
        """Whether the container is on the network of that name or id."""
        return any(network in (member.name, member.id) for member in self._containers[owner].record.members)

    async def check(self, networks: Iterable[str]) -> None:
        """Raises `NotFound` when one of them is no network of the swarm, and what `create` would raise for all."""
        wanted = tuple(Joining(network=network) for network in networks)
        request = AttachRequest(task=TaskID(new_id()), container="-", networks=wanted, check=True)
        await self._means.managers.attach(request)

    def shown(self, owner: TaskID) -> Shown:
        """Everything that only we know of a container."""
        container = self._containers[owner]
        record = container.record
        return Shown(
            mode=record.mode,
            networks=tuple(_membership(record, member, self._local.known(member.id)) for member in record.members),
            spec=record.spec,
            ports=record.ports,
            published=record.granted.local.ports if record.granted is not None else (),
            links=record.shown_links,
            restart=record.restart,
            restarts=record.restarts,
            files=record.files,
            namespace=netns.path(sandbox_namespace(owner)) if container.up else "",
        )

    # --- verbs ------------------------------------------------------------------------------------------------------

    async def create(self, wish: Wish, name: str, work: Callable[[Place], Awaitable[T]]) -> T:
        """`work` makes the container in its place. If it does not say so there, nothing remains.

        Raises `NotFound` (a network), `Forbidden`, `Invalid`, `Conflict` or `Unavailable`, before anything is made.
        """
        self._local.needed.set()
        await self.tidy()
        links = {alias: self._linked(ref) for ref, alias in wish.links}
        record = Record(
            owner=TaskID(new_id()), name=name, mode=wish.mode, spec=wish.spec, ports=wish.ports, restart=wish.restart,
            remove=wish.remove, stopped=True, links=links, shown_links=tuple(":".join(link) for link in wish.links),
        )  # fmt: skip
        reply = await self._means.managers.attach(request_of(record, wish.networks, check=True))
        container = PlainContainer(
            msgspec.structs.replace(record, members=members_of(reply, wish.networks)), self._means
        )
        bare = msgspec.structs.replace(reply.task, attachments=())
        return await asyncio.shield(self.spawn(self._create(container, bare, work), f"create {name}"))

    def _linked(self, ref: str) -> TaskID:
        """The container that somebody links to, by name or id. Raises `Invalid`."""
        found = self.named(ref)
        if found is None:
            raise Invalid(f"could not get container for {ref}: No such container: {ref}")
        return found.owner

    def named(self, ref: str) -> Record | None:
        """Ours of that name or id, or beginning of an id."""
        for container in self._containers.values():
            record = container.record
            if record.container and ref and (ref == record.name or record.container.startswith(ref)):
                return record
        return None

    async def _create(self, container: PlainContainer, task: Any, work: Callable[[Place], Awaitable[T]]) -> T:
        owner = container.record.owner
        place = Place(owner, netns.path(sandbox_namespace(owner)), {})
        self._containers[owner] = container
        try:
            place.files = self._files.write(task, {}, read_host_conf(), container.record.spec.hostname)
            container.set(files=place.files)
            with netns.reserved(sandbox_namespace(owner)):
                return await work(place)
        finally:
            if place.container:
                container.set(container=place.container, name=place.name)
            else:
                self.forget(owner)

    async def start(self, owner: TaskID, work: Work[T]) -> T:
        """`work` starts the process, unless it runs."""
        return await self._alone(owner, lambda container: container.begin(work))

    async def restart(self, owner: TaskID, work: Work[T]) -> T:
        """`work` ends the process, if it runs, and starts it again: its sandbox stays."""
        return await self._alone(owner, lambda container: container.begin(work, again=True))

    async def stop(self, owner: TaskID, work: Work[T]) -> T:
        """`work` should end the process. Returns when what belongs to it is given back, if it did."""
        return await (await self._one(owner)).stop(work)

    async def remove(self, owner: TaskID, work: Work[T]) -> T:
        """`work` removes the container, if it may."""
        container = await self._one(owner)
        result = await work()
        if await container.look() is None:
            await self._vanish(container)
        return result

    @asynccontextmanager
    async def looked_into(self, owner: TaskID) -> AsyncIterator[None]:
        """While somebody follows its output. The engine puts a container that does not run into its namespaces for
        that, so that nothing is lost when it starts: they must be there.
        """
        container = await self._one(owner)
        await asyncio.shield(self.spawn(container.watched(), f"watch {container.record.name}"))
        try:
            yield
        finally:
            self.spawn(container.unwatched(), f"leave {container.record.name}")

    async def rename(self, owner: TaskID, name: str) -> None:
        """The container goes by another name now."""
        await self._alone(owner, lambda container: container.rename(name))

    async def connect(self, owner: TaskID, joining: Joining) -> None:
        """Onto one more network, at once if it runs. Raises `Forbidden` when it is there already, and as `create`."""

        async def connect(container: PlainContainer) -> None:
            if self.is_member(owner, joining.network):
                name = container.record.name
                raise Forbidden(f"endpoint with name {name} already exists in network {joining.network}")
            await container.change((*joinings_of(container.record), joining))

        await self._alone(owner, connect)

    async def disconnect(self, owner: TaskID, network: str) -> None:
        """Off the network of that name, id or beginning of an id. Raises `HivemeshError` when it is not on it."""

        async def disconnect(container: PlainContainer) -> None:
            record = container.record
            member = next((m for m in record.members if network in (m.name, m.id)), None)
            member = member or next((m for m in record.members if network and m.id.startswith(network)), None)
            if member is None:
                raise HivemeshError(f"container {record.container} is not connected to the network {network}")
            await container.change(tuple(j for j in joinings_of(record) if j.network != member.name))

        await self._alone(owner, disconnect)

    async def tidy(self) -> None:
        """Forget containers that the engine does not have any more."""
        await self._ready.wait()
        found = await self._found() if self._containers else {}
        for container in [c for c in self._containers.values() if c.record.container and c.record.owner not in found]:
            await self._vanish(container)

    # --- agreement --------------------------------------------------------------------------------------------------

    async def _adopt(self) -> None:
        """See what runs, as soon as the engine says."""
        delay, found = RETRY_FIRST, None
        while self._containers and found is None:
            try:
                found = await self._found()
            except HivemeshError as error:
                log.warning("the engine does not say which containers it has, asking again in %g s: %s", delay, error)
                await self._means.clock.sleep(delay)
                delay = min(2 * delay, RETRY_LAST)
        for owner, container in list(self._containers.items()):
            info = (found or {}).get(owner)
            if info is None:
                self.spawn(self._vanish(container), f"forget {container.record.name}")
                continue
            container.set(container=info.id, name=info.name)
            begins = container.record.restart.name in ("always", "unless-stopped") and not container.record.stopped
            if runs(info):
                self._adoptions.append(self.spawn(self._resume(container), f"adopt {info.name}"))
            elif begins:
                self.spawn(container.begin_again(), f"begin {info.name}")
            else:
                self.spawn(self._end(container), f"end {info.name}")

    async def _resume(self, container: PlainContainer) -> None:
        """It ran on while there was no daemon."""
        async with container.lock:
            try:
                if container.up:
                    await container.wire(container.record)
                else:
                    await container.prepare()
                log.info("adopted the container %s", container.record.name)
            except HivemeshError as error:
                name = container.record.name
                log.warning("the sandbox of container %s cannot be brought in order: %s", name, error)
            container.follow()

    async def _vanish(self, container: PlainContainer) -> None:
        async with container.lock:
            await container.vanish()

    async def _end(self, container: PlainContainer) -> None:
        """It ended while there was no daemon."""
        async with container.lock:
            try:
                await container.leave_namespaces()
            except HivemeshError as error:
                log.warning("container %s: %s", container.record.name, error)
            await container.end()

    async def _agree(self) -> None:
        """With the managers: give back what nobody uses, claim what runs and they do not know of."""
        delay = RETRY_FIRST
        while True:
            await self._wake.wait()
            self._wake.clear()
            idle = [owner for owner in self._held | self._owed if owner not in self._told and not self._is_up(owner)]
            done = [await self._give_up(owner) for owner in idle]
            unknown, self._unknown = self._unknown, None if self._unknown is None else set()
            done += [await self._claim(owner) for owner in unknown or ()]
            if all(done):
                delay = RETRY_FIRST
            else:
                self._wake.clear()
                asyncio.get_running_loop().call_later(delay, self._wake.set)
                delay = min(2 * delay, RETRY_LAST)

    async def _give_up(self, owner: TaskID) -> bool:
        container = self._containers.get(owner)
        async with container.lock if container is not None else asyncio.Lock():
            if self._is_up(owner):  # it began meanwhile
                return True
            await self._means.sandboxes.detach(owner)  # left by a daemon that ended half-way
            return await self.give_back(owner)

    async def _claim(self, owner: TaskID) -> bool:
        container = self._containers.get(owner)
        if container is None:
            return True
        async with container.lock:
            try:
                await container.claim()
            except HivemeshError as error:
                log.warning("the managers refuse container %s, which runs: %s", container.record.name, error)
                self._unknown = (self._unknown or set()) | {owner}
                return False
        return True

    def _is_up(self, owner: TaskID) -> bool:
        container = self._containers.get(owner)
        return container is not None and container.up

    # --- a container's home -----------------------------------------------------------------------------------------

    def save(self) -> None:
        try:
            records.save(self._path, [container.record for container in self._containers.values()])
        except OSError as error:
            log.error("cannot save which containers are on which networks: %s", error)

    def forget(self, owner: TaskID) -> None:
        self._containers.pop(owner, None)
        self._files.remove(owner)
        self.save()

    async def give_back(self, owner: TaskID) -> bool:
        self._owed.add(owner)
        try:
            await self._means.managers.detach(owner)
        except HivemeshError as error:
            log.warning("cannot tell the managers that a container has left its networks, trying again: %s", error)
            self._wake.set()
            return False
        self._owed.discard(owner)
        if owner in self._held:
            self._told.add(owner)
        return True

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name=name)
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        return task

    # --- help -------------------------------------------------------------------------------------------------------

    async def _one(self, owner: TaskID) -> PlainContainer:
        await self._ready.wait()
        try:
            return self._containers[owner]
        except KeyError:
            raise NotFound("No such container: it was removed a moment ago") from None

    async def _alone(self, owner: TaskID, work: Callable[[PlainContainer], Awaitable[T]]) -> T:
        """One change of a container at a time."""
        container = await self._one(owner)

        async def run() -> T:
            async with container.lock:
                self._told.discard(owner)
                return await work(container)

        return await asyncio.shield(self.spawn(run(), f"container {container.record.name}"))

    async def _found(self) -> dict[TaskID, ContainerInfo]:
        return {TaskID(info.labels[LABEL]): info for info in await self._means.engine.list(LABEL)}


def leave_swarm(directory: Path, local: LocalNetworks) -> None:
    """This node is in no swarm any more: what its containers hold is on networks of this node alone."""
    path = directory / FILE
    found = []
    for record in records.load(path).values():
        task = record.granted
        if task is not None:
            attachments = tuple(a for a in task.attachments if local.known(a.network_id) is not None)
            task = msgspec.structs.replace(task, attachments=attachments) if attachments else None
            if task is None:
                local.release(record.owner)
            else:
                local.hold(task)
        found.append(msgspec.structs.replace(record, granted=task))
    if found:
        records.save(path, found)


def _membership(record: Record, member: Member, local: LocalNetwork | None) -> Membership:
    names = (record.name, *member.aliases, short(record.container), record.spec.hostname)
    shown = Membership(
        name=member.name,
        network_id=member.id,
        aliases=member.aliases,
        wanted=tuple(map(str, member.addresses)),
        priority=member.priority,
        names=tuple(dict.fromkeys(name for name in names if name)),
    )
    for attachment in record.granted.attachments if record.granted is not None else ():
        if attachment.network_id == member.id:
            return replace(
                shown,
                endpoint_id=attachment.endpoint_id,
                mac=attachment.mac,
                v4=next((str(address) for address in attachment.addresses if address.version == 4), ""),
                v6=next((str(address) for address in attachment.addresses if address.version == 6), ""),
                gateway4=_gateway(local, 4),
                gateway6=_gateway(local, 6),
            )
    return shown


def _gateway(network: LocalNetwork | None, version: int) -> str:
    subnet = network.subnet(version) if network is not None and not network.internal else None
    return str(subnet.gateway) if subnet is not None else ""
