"""The manager: the control loops as pure passes over one transaction, and the facade the API speaks to.

A request changes intent and runs the passes in the same transaction: `service create` is one commit with the service,
its VIP, its tasks and their nodes. Everything else (a report, a node lost, a delay that is over) wakes `run`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from typing import TypeVar

from hivemesh.clock import Clock
from hivemesh.control import (
    allocator,
    attachments,
    credentials,
    enforcer,
    insight,
    lookup,
    networks,
    nodes,
    orchestrator,
    reaper,
    rotation,
    scheduler,
    secrets,
    services,
    swarm,
)
from hivemesh.control.examiner import Examiner
from hivemesh.control.feeds import FeedDesk
from hivemesh.control.inspector import Inspector
from hivemesh.control.logs import LogDesk
from hivemesh.model import ids
from hivemesh.model.cluster import Cluster, Renewal, SwarmSpec
from hivemesh.model.errors import Exhausted, HivemeshError
from hivemesh.model.ids import NodeID, TaskID
from hivemesh.model.network import Network, NetworkSpec
from hivemesh.model.node import Node, NodeSpec
from hivemesh.model.secret import Config, PayloadSpec, Secret
from hivemesh.model.service import Service, ServiceSpec
from hivemesh.model.task import Task
from hivemesh.store.tables import Tables, Transaction
from hivemesh.wire.control import AttachReply, AttachRequest
from hivemesh.wire.insight import Insight, Insights

log = logging.getLogger("hivemesh.control")

T = TypeVar("T", Cluster, Node, Network, Service, Task, Secret, Config)
P = TypeVar("P", Secret, Config)
ROUNDS = 5
"""Passes until nothing changes; two do in practice (what one made, the next finds right)."""
RETRY = 1.0
"""Seconds until the loops try again after the store refused, or after they did not come to rest."""


def converge(tx: Transaction, now: float, new_id: Callable[[], str]) -> float | None:
    """All passes until nothing changes. Returns when there is something to do again, in unix seconds, if known."""
    for _ in range(ROUNDS):
        before = tx.edits
        enforcer.enforce(tx)
        wake = orchestrator.orchestrate(tx, now, new_id)
        allocator.allocate(tx, now, new_id)
        scheduler.schedule(tx, now)
        reaper.reap(tx)
        rotation.finish(tx, now)
        if tx.edits == before:
            return wake
    log.warning("the control loops did not come to rest in %d rounds; going on later", ROUNDS)
    return now + RETRY


class Manager:
    """What users can do to the cluster. Look-ups take a full id, an exact name or the beginning of an id."""

    def __init__(
        self,
        tables: Tables,
        clock: Clock,
        new_id: Callable[[], str] = ids.new_id,
        me: NodeID | None = None,
        elected: Callable[[], NodeID | None] | None = None,
    ) -> None:
        """`me` is the node this manager runs on; `elected` says who leads, if that is not always this one."""
        self.tables = tables
        self.me = me
        self._elected = elected
        self._clock = clock
        self._new_id = new_id
        self._wake: float | None = None
        self.examiner: Examiner | None = None  # asks agents what lies on a packet's way
        self.inspector: Inspector | None = None  # asks all of them how they are
        self.feeds: FeedDesk | None = None  # where agents can be asked for their traffic
        self.logs: LogDesk | None = None  # where agents can be asked for the output of tasks

    async def run(self) -> None:
        """Keep the cluster as intended for as long as the manager lives."""
        while True:
            revision = self.tables.view.revision
            try:
                await self.tables.update(self._converge)
            except HivemeshError as error:
                log.error("the control loops cannot write: %s; trying again", error)
                await self._clock.sleep(RETRY)
                continue
            await self._until_changed(max(revision, self.tables.view.revision))

    async def _until_changed(self, revision: int) -> None:
        waits = [asyncio.ensure_future(self.tables.changed(revision))]
        if self._wake is not None:
            waits.append(asyncio.ensure_future(self._until(self._wake)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await wait

    async def _until(self, when: float) -> int:
        await self._clock.sleep(max(0.0, when - self._clock.now()))
        return 0

    def _converge(self, tx: Transaction) -> None:
        self._wake = converge(tx, self._clock.now(), self._new_id)

    async def _change(self, change: Callable[[Transaction, float], T]) -> T:
        """Intent, then the passes, in one commit; returns the object as committed (or as it was when removed)."""

        def apply(tx: Transaction) -> T:
            changed = change(tx, self._clock.now())
            self._converge(tx)
            return changed

        changed = await self.tables.update(apply)
        return self.tables.view.get(type(changed), changed.id) or changed

    # --- services

    async def create_service(self, spec: ServiceSpec, credential: str = "") -> Service:
        """`credential` is what the image's registry is to be shown (`wire.registryauth`)."""

        def create(tx: Transaction, now: float) -> Service:
            created = services.create(tx, spec, now, self._new_id())
            credentials.keep(tx, created, credential, "")
            return created

        return await self._change(create)

    async def update_service(
        self,
        ref: str,
        version: int,
        spec: ServiceSpec,
        rollback: bool = False,
        credential: str = "",
        source: str = "",
    ) -> Service:
        """Raises `OutOfSequence` unless `version` is the service's. `rollback` returns to the previous spec; without a
        `credential`, `source` says which of those known before is used.
        """

        def update(tx: Transaction, now: float) -> Service:
            updated = services.update(tx, ref, version, spec, now, rollback=rollback)
            credentials.keep(tx, updated, credential, source)
            return updated

        return await self._change(update)

    async def remove_service(self, ref: str) -> None:
        def remove(tx: Transaction, now: float) -> Service:
            removed = services.remove(tx, ref)
            credentials.forget(tx, removed)
            return removed

        await self._change(remove)

    def service(self, ref: str) -> Service:
        return lookup.service(self.tables.view, ref)

    def services(self) -> Collection[Service]:
        return self.tables.view.all(Service)

    # --- networks

    async def create_network(self, spec: NetworkSpec) -> Network:
        """Raises `Exhausted` when no subnet is left: then nothing was created."""

        def create(tx: Transaction) -> Network:
            created = networks.create(tx, spec, self._clock.now(), self._new_id())
            self._converge(tx)
            granted = tx.get(Network, created.id)
            if granted is not None and granted.error:
                raise Exhausted(f"{granted.error}; give one with --subnet, or remove networks that nobody uses")
            return created

        created = await self.tables.update(create)
        return self.tables.view.get(Network, created.id) or created

    async def remove_network(self, ref: str) -> None:
        await self._change(lambda tx, now: networks.remove(tx, ref))

    def network(self, ref: str) -> Network:
        return lookup.network(self.tables.view, ref)

    def networks(self) -> Collection[Network]:
        return self.tables.view.all(Network)

    def insight(self, ref: str) -> Insight:
        """A network with everybody on it."""
        return insight.detail(self.tables.view, self.network(ref))

    def insights(self) -> Insights:
        """All networks, the oldest first."""
        return insight.overview(self.tables.view)

    # --- secrets and configs

    async def create_payload(self, kind: type[P], spec: PayloadSpec) -> P:
        """`kind` is `Secret` or `Config`."""
        return await self._change(lambda tx, now: secrets.create(tx, kind, spec, now, self._new_id()))

    async def update_payload(self, kind: type[P], ref: str, version: int, spec: PayloadSpec) -> P:
        """Labels only. Raises `OutOfSequence` unless `version` is the object's."""
        return await self._change(lambda tx, now: secrets.update(tx, kind, ref, version, spec, now))

    async def remove_payload(self, kind: type[P], ref: str) -> None:
        """Raises `Invalid` while a service uses it."""
        await self._change(lambda tx, now: secrets.remove(tx, kind, ref))

    def payload(self, kind: type[P], ref: str) -> P:
        return lookup.payload(self.tables.view, kind, ref)

    def payloads(self, kind: type[P]) -> Collection[P]:
        return self.tables.view.all(kind)

    # --- nodes and tasks

    async def update_node(self, ref: str, version: int, spec: NodeSpec) -> Node:
        return await self._change(lambda tx, now: nodes.update(tx, ref, version, spec, now))

    async def remove_node(self, ref: str, force: bool = False) -> None:
        await self._change(lambda tx, now: nodes.remove(tx, ref, force=force))

    def node(self, ref: str) -> Node:
        return lookup.node(self.tables.view, ref)

    def nodes(self) -> Collection[Node]:
        return self.tables.view.all(Node)

    def task(self, ref: str) -> Task:
        return lookup.task(self.tables.view, ref)

    def tasks(self) -> Collection[Task]:
        return self.tables.view.all(Task)

    # --- plain containers on swarm networks

    async def attach(self, node: NodeID, request: AttachRequest) -> AttachReply:
        """Put a container of `node` on the networks it asks for, or see whether it could be. Raises as
        `attachments.attach` does: then nothing changed.
        """

        def attach(tx: Transaction) -> AttachReply:
            reply = attachments.attach(tx, node, request, self._clock.now(), self._new_id)
            if not request.check:
                self._converge(tx)
            return reply

        return await self.tables.update(attach)

    async def detach(self, node: NodeID, task: TaskID) -> None:
        def detach(tx: Transaction) -> None:
            attachments.detach(tx, node, task)
            self._converge(tx)

        await self.tables.update(detach)

    # --- the cluster

    @property
    def leader(self) -> NodeID | None:
        """The manager that runs the loops and holds the agents' sessions, as far as is known."""
        return self._elected() if self._elected is not None else self.me

    @property
    def cluster(self) -> Cluster:
        return self.tables.view.cluster

    async def update_cluster(self, version: int, spec: SwarmSpec, renewal: Renewal | None = None) -> Cluster:
        """Raises `OutOfSequence` unless `version` is the cluster's."""
        return await self._change(lambda tx, now: swarm.update(tx, version, spec, now, renewal or Renewal()))
