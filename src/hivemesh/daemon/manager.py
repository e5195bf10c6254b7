"""The manager's side of a node: the store, the cluster port, and while it leads the control loops and the sessions.

    embedded (SQLite) ── a second manager comes ──▶ an etcd of our own ── the others ──▶ theirs
    --store etcd://… ── from the beginning ──▶ an etcd of somebody else

What is on disk decides: `etcd.json`, `store.db`, or neither: then other managers are asked to be taken in.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hivemesh.agent import join as membership
from hivemesh.agent.identity import Identity
from hivemesh.clock import Clock
from hivemesh.config import DaemonConfig
from hivemesh.control.dispatcher import Dispatcher
from hivemesh.control.examiner import Examiner
from hivemesh.control.feeds import FeedDesk
from hivemesh.control.inspector import Inspector
from hivemesh.control.logs import LogDesk
from hivemesh.control.manager import Manager
from hivemesh.control.members import Members, act_at
from hivemesh.control.server import ClusterServer
from hivemesh.daemon import etcd, outside
from hivemesh.daemon.etcd import EtcdServer, Record, Unsteady, keep_record, recorded
from hivemesh.daemon.sealing import keep_sealed
from hivemesh.model.errors import Conflict, Forbidden, HivemeshError, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.pki.seal import Seal
from hivemesh.store import sqlite
from hivemesh.store.api import Snapshot, Store
from hivemesh.store.etcd import HISTORY, ROOT, EtcdStore, fill
from hivemesh.store.etcdapi import EtcdClient
from hivemesh.store.leader import Alone, Election, EtcdElection
from hivemesh.store.room import keep_room
from hivemesh.store.sealed import SealedStore
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables, Transaction
from hivemesh.wire.control import (
    FromManager,
    ManagerReply,
    ManagerRequest,
    Passed,
    TellRequest,
)

log = logging.getLogger("hivemesh.managers")

RETRY = 0.5
"""Seconds between attempts to reach the store while this manager begins."""
BEGIN_TIMEOUT = 15.0
"""Seconds a new etcd of ours may take until it answers; it takes one or two."""


def store_directory(data_dir: Path) -> Path:
    """Where a manager keeps the cluster's state."""
    return data_dir / "store"


@dataclass(frozen=True, slots=True)
class _Backing:
    """Where the state is. `client` is there with etcd, `server` with one of our own."""

    tables: Tables
    client: EtcdClient | None = None
    root: bytes = b""
    server: EtcdServer | None = None


class ManagerRole:
    """Runs while this node is a manager. `manager` is the facade once the state is loaded.

    `identity` is asked each time: its certificate is renewed and it learns of other managers.
    """

    def __init__(
        self, identity: Callable[[], Identity], config: DaemonConfig, clock: Clock, *, alone: bool = False
    ) -> None:
        """`alone`: go on without the other managers, with what this one knows."""
        self._identity = identity
        self._config = config
        self._clock = clock
        self._directory = store_directory(config.data_dir)
        self._me = identity().facts.node_id
        self._alone = alone
        self._growing = asyncio.Lock()
        self._moved = asyncio.Event()
        self._lost = asyncio.Event()  # what this manager held of the store
        self._election: Election = Alone(self._me)
        self._backing: _Backing | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self.manager: Manager | None = None
        self.error = ""

    async def run(self, ready: asyncio.Event) -> None:
        """Until cancelled. Raises `Unavailable` or `Invalid` when the embedded store or the port cannot be had; for
        other managers and their store it waits, and says so in `error`.
        """
        try:
            self._backing = backing = await self._open()
            tables = backing.tables
            self._elect(backing)
            manager = Manager(tables, self._clock, me=self._me, elected=lambda: self._election.leader)
            manager.logs = LogDesk(tables, self._tell, self._clock)
            manager.feeds = FeedDesk(self._tell, self._clock)
            manager.examiner = Examiner(tables, self._tell, self._silence)
            manager.inspector = Inspector(tables, self._tell, self._clock)
            facts = self._identity().facts
            self._server = server = ClusterServer(
                manager,
                certificate=self._identity().certificate,
                listen=facts.listen,
                clock=self._clock,
                colleagues=self,
                password=lambda: self._identity().vault.password,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(tables.run(), name="tables")
                tasks.create_task(server.run(), name="cluster port")
                tasks.create_task(keep_sealed(tables, self._identity, self._clock), name="keys at rest")
                tasks.create_task(self._terms(), name="terms of leading")
                tasks.create_task(self._until_lost(), name="loss of the store")
                await server.ready.wait()
                self.manager = manager
                ready.set()
        finally:
            self.manager = None
            for helper in self._helpers:
                helper.cancel()
            await asyncio.gather(*self._helpers, return_exceptions=True)
            if self._backing is not None:
                await self._backing.tables.store.close()
                self._backing = None

    def _silence(self, node: NodeID) -> float | None:
        """Seconds since the node was heard, as the leader knows it."""
        leading = self.dispatcher
        return None if leading is None else leading.monitor.silence(node)

    @property
    def dispatcher(self) -> Dispatcher | None:
        """There while this manager leads."""
        return self._server.dispatcher if self.manager is not None else None

    async def dissolve(self, *, last: bool = False) -> None:
        """This node is no manager any more: nothing of the store remains here, nor, of the `last` manager, elsewhere.

        Not while it runs.
        """
        if last and self._config.store:
            try:
                await outside.erase(self._config.store)
            except HivemeshError as error:
                log.warning("the swarm's state remains in %s: %s", self._config.store, error)
        await EtcdServer(self._identity, self._directory, self._config.run_dir).stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        identity = self._identity()
        identity.lock("")
        identity.vault.forget()

    # --- leading ------------------------------------------------------------------------------------------------

    def _elect(self, backing: _Backing) -> None:
        if backing.client is not None:
            self._election = EtcdElection(backing.client, backing.root, self._me, lambda: self._willing(backing.tables))

    def _willing(self, tables: Tables) -> bool:
        node = tables.view.get(Node, self._me)
        return node is not None and node.spec.role == "manager"

    async def _terms(self) -> None:
        """Lead when elected; begin anew when the store has moved."""
        while True:
            self._moved.clear()
            running = asyncio.create_task(self._election.run(self._lead), name="election")
            moved = asyncio.create_task(self._moved.wait())
            try:
                await asyncio.wait({running, moved}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
            finally:
                for each in (running, moved):
                    each.cancel()
                await asyncio.gather(running, moved, return_exceptions=True)

    async def _lead(self) -> None:
        assert self._backing is not None
        tables = self._backing.tables
        manager = self.manager
        while manager is None:  # the port is being opened
            await asyncio.sleep(0.01)
            manager = self.manager
        dispatcher = Dispatcher(tables, self._clock)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(dispatcher.run(), name="dispatcher")
                tasks.create_task(manager.run(), name="control loops")
                if self._backing.client is not None:
                    own = self._backing.client if self._backing.server is not None else None
                    tasks.create_task(Members(tables, own, self._me).run(), name="members")
                self._server.dispatcher = dispatcher
        finally:
            self._server.dispatcher = None
            await self._server.hang_up("this manager leads no more")

    async def _tell(self, node: NodeID, frame: FromManager) -> bool:
        """Wherever the node's session is."""
        if self._server.dispatcher is not None:
            return await self._server.dispatcher.tell(node, frame)
        manager = self.manager
        leader = manager.tables.view.get(Node, manager.leader) if manager and manager.leader else None
        if leader is None or not isinstance(frame, Passed):
            return False
        frame = msgspec.structs.replace(frame, manager=self._identity().manager_addr)
        return await membership.tell(self._identity(), leader.manager_addr, TellRequest(node=node, frame=frame))

    # --- taking in another manager --------------------------------------------------------------------------------

    async def expect(self, store: str, has_etcd: bool) -> None:
        if not outside.same(store, self._config.store):
            here = f"--store {self._config.store}" if self._config.store else "no --store"
            raise Unavailable(f"the managers of this swarm run with {here}: start hivemeshd there likewise, then join")
        if not store and not has_etcd:
            raise Unavailable(f"{etcd.MISSING}; a manager beside others needs it")
        if not store:
            etcd.require()
        if self._backing is None:
            raise Unavailable("this manager is starting: try again")

    async def admit(self, node: Node, request: ManagerRequest) -> ManagerReply:
        await self.expect(request.store, True)
        async with self._growing:
            assert self._backing is not None
            if self._backing.client is None:
                await self._grow()
            backing = self._backing
            await backing.tables.update(lambda tx: act_at(tx, node.id, request.addr, self._clock.now()))
            members = Members(backing.tables, backing.client if backing.server is not None else None, self._me)
            try:
                found = await members.admit(node.id, request.addr)
            except Conflict as error:
                raise Unavailable(str(error)) from error
        return ManagerReply(seal_key=self._identity().vault.key, members=found)

    async def members(self) -> tuple[NodeID, ...]:
        backing = self._backing
        if backing is None:
            raise Unavailable("this manager is starting: try again")
        if backing.server is None or backing.client is None:
            return (self._me,)
        await EtcdStore.open(backing.client)  # a read that takes a majority: what follows is no old news
        return tuple(NodeID(member.name) for member in await backing.client.members() if member.name)

    async def _grow(self) -> None:
        """From the embedded store to an etcd of our own. Everything goes on meanwhile; writes wait for a moment."""
        assert self._backing is not None
        tables = self._backing.tables
        server = EtcdServer(self._identity, self._directory, self._config.run_dir)
        client = server.client()
        try:
            await server.begin()
            made: list[EtcdStore] = []

            async def move(snapshot: Snapshot) -> Store:
                store = await _until_answered(lambda: EtcdStore.create(client, after=snapshot.revision))
                sealed = SealedStore(store, Seal(self._identity().vault.key))
                await fill(sealed, snapshot.entries)
                await store.finish()
                keep_record(self._directory, Record(members={self._me: server.peer}, new=True))
                made.append(store)
                return sealed

            await tables.move(move)
        except BaseException:
            if recorded(self._directory) is None:
                await client.close()
                await server.stop()
            raise
        sqlite.remove(self._directory)
        self._backing = _Backing(tables, client, made[0].root, server)
        self._help(server)
        self._elect(self._backing)
        self._moved.set()
        log.info("the swarm's state is in etcd now")

    def _help(self, server: EtcdServer) -> None:
        self._helpers.add(asyncio.create_task(self._keep_etcd(server), name="etcd"))
        self._helpers.add(asyncio.create_task(self._keep_room(server), name="room in etcd"))

    async def _keep_room(self, server: EtcdServer) -> None:
        client = server.client()
        try:
            await keep_room(client)
        finally:
            await client.close()

    async def _keep_etcd(self, server: EtcdServer) -> None:
        while True:
            try:
                await server.run(self._dismissed)
            except HivemeshError as error:
                if str(error) != self.error:
                    log.error("%s", error)
                self.error = str(error)
            except Unsteady:
                if await self._is_outcast():
                    log.warning("the other managers go on without this one's part of the store: giving it up")
                    await server.stop()
                    server.forget()
                    self._lost.set()
            await asyncio.sleep(RETRY)

    def _dismissed(self) -> bool:
        return self._backing is not None and not self._willing(self._backing.tables)

    async def _is_outcast(self) -> bool:
        """Others say that our server is no member: it was removed while it, or this daemon, was away."""
        try:
            return self._me not in await membership.store_members(self._identity())
        except HivemeshError as error:
            log.info("cannot ask whether this manager is still one: %s", error)
            return False

    async def _until_lost(self) -> None:
        await self._lost.wait()
        raise Unavailable("this manager's part of the store was removed by the others")

    # --- opening the store ----------------------------------------------------------------------------------------

    async def _open(self) -> _Backing:
        """Raises what the embedded store raises."""
        if self._config.store:
            return await self._patiently(self._open_outside)
        if recorded(self._directory) is None and (self._directory / sqlite.FILE).exists():
            seal = Seal(self._identity().vault.key)
            tables = Tables(SealedStore(await SqliteStore.open(self._directory), seal))
            await tables.load()
            await self._go_on_alone(tables)
            return _Backing(tables)
        server = EtcdServer(self._identity, self._directory, self._config.run_dir)
        if self._alone:
            await server.stop()
            server.alone()
        return await self._patiently(lambda: self._open_own(server))

    async def _patiently(self, attempt: Callable[[], Awaitable[_Backing]]) -> _Backing:
        while True:
            try:
                opened = await attempt()
                self._lost.clear()
            except (Unavailable, Forbidden) as error:
                if str(error) != self.error:
                    log.warning("this manager cannot begin yet: %s", error)
                self.error = str(error)
                await asyncio.sleep(RETRY)
            else:
                self.error = ""
                return opened

    async def _open_own(self, server: EtcdServer) -> _Backing:
        record = recorded(self._directory)
        if record is None or not (server.began or record.new or self._helpers):
            etcd.require()
            reply = await membership.act_as_manager(self._identity(), "")
            self._identity().vault.keep(reply.seal_key)
            keep_record(self._directory, Record(members=reply.members))
        if not self._helpers:
            self._help(server)
        return await self._load(server.client(), ROOT, HISTORY, server)

    async def _open_outside(self) -> _Backing:
        if not self._identity().vault.has_key:
            reply = await membership.act_as_manager(self._identity(), self._config.store)
            self._identity().vault.keep(reply.seal_key)
        client, root = outside.connect(self._config.store)
        return await self._load(client, root, None, None)

    async def _load(self, client: EtcdClient, root: str, history: int | None, server: EtcdServer | None) -> _Backing:
        try:
            store = await EtcdStore.open(client, root, history)
            if store is None:
                raise Unavailable("the store in etcd holds no swarm")
            tables = Tables(SealedStore(store, Seal(self._identity().vault.key)))
            await tables.load()
            await self._go_on_alone(tables)
        except BaseException:
            await client.close()
            raise
        return _Backing(tables, client, store.root, server)

    async def _go_on_alone(self, tables: Tables) -> None:
        if not self._alone:
            return

        def dismiss(tx: Transaction) -> None:
            for node in list(tx.all(Node)):
                if node.id != self._me and node.acting_role == "manager":
                    spec = msgspec.structs.replace(node.spec, role="worker")
                    node = node.gone_down("it was lost with the majority of the managers", self._clock.now())
                    tx.put(msgspec.structs.replace(node.with_spec(spec), manager_addr=""))

        await tables.update(dismiss)
        self._alone = False


async def _until_answered(ask: Callable[[], Awaitable[EtcdStore]]) -> EtcdStore:
    """A server that begins refuses for a second. Raises `Unavailable` when it takes much longer."""
    loop = asyncio.get_running_loop()
    until = loop.time() + BEGIN_TIMEOUT
    while True:
        try:
            return await ask()
        except Unavailable:
            if loop.time() > until:
                raise
        await asyncio.sleep(0.1)
