"""One machine's daemon: its API, its engine, and its place in a swarm."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from hivemesh.agent import identity as identities
from hivemesh.agent import inquiry
from hivemesh.agent import join as membership
from hivemesh.agent.advertise import choose_address, listen_address
from hivemesh.agent.attached import AttachedContainers, leave_swarm
from hivemesh.agent.facts import describe, local_addresses
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.grants import Grants
from hivemesh.agent.identity import Identity
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.logs import LogSender
from hivemesh.agent.plain import PlainNode
from hivemesh.agent.resolver import Resolver
from hivemesh.agent.session import Session
from hivemesh.agent.vault import LOCKED, NOT_LOCKED
from hivemesh.agent.worker import Worker
from hivemesh.api.local import LocalState, RemoteManager
from hivemesh.api.server import ApiServer
from hivemesh.clock import Clock
from hivemesh.config import DaemonConfig
from hivemesh.control.manager import Manager
from hivemesh.daemon import etcd, founding
from hivemesh.daemon.manager import ManagerRole
from hivemesh.daemon.tracing import Tracing
from hivemesh.dataplane.apply import Applier
from hivemesh.engine.api import Engine, EngineInfo
from hivemesh.engine.podman import PodmanEngine
from hivemesh.engine.process import ProcessEngine
from hivemesh.engine.service import PodmanService
from hivemesh.kernel import ipvs
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.probe import missing
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.model.addr import Address
from hivemesh.model.errors import Conflict, HivemeshError, Invalid, NotFound, Unavailable
from hivemesh.model.generic import GenericResource
from hivemesh.model.ids import NodeID
from hivemesh.model.node import NodeDescription
from hivemesh.registry import Registries
from hivemesh.wire.control import View
from hivemesh.wire.engine import SwarmInit, SwarmJoin
from hivemesh.wire.insight import Insight, Insights
from hivemesh.wire.trace import Question, Trace

log = logging.getLogger("hivemesh.daemon")

ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
NOT_IN = "This node is not part of a swarm"
MANAGER_LEAVES = "You are attempting to leave the swarm on a node that is participating as a manager. "
LAST_MANAGER = (
    f"{MANAGER_LEAVES}Removing the last manager erases all current state of the swarm. Use `--force` to ignore this "
    "message."
)
ONE_OF_SEVERAL = (
    "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use "
    "`--force` to suppress this message."
)
SLOW = (
    "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. "
    'Use the "docker info" command to see the current swarm status of your node.'
)
START_TIMEOUT = 20.0
"""Seconds `init` and `join` wait for the node to be usable (Docker's number)."""
MANAGER_FIRST = 3.0
"""Seconds that a starting manager gets before tasks and networks are looked after: other managers may be away."""
RESTART_DELAY = 1.0
"""Seconds before the swarm's side is built again after it failed."""


class Daemon:
    """Implements the API's `LocalNode`."""

    def __init__(self, config: DaemonConfig, clock: Clock) -> None:
        self.clock = clock
        self._config = config
        self._service = PodmanService(config.run_dir)
        self._engine = self._build_engine()
        self._identity: Identity | None = None
        self._role: ManagerRole | None = None
        self._hooks = SocketHooks(config.run_dir / "bpf")
        self._session: Session | None = None
        self._worker: Worker | None = None
        self._tracing: Tracing | None = None
        self._attached: AttachedContainers | None = None
        self._local = LocalNetworks(config.data_dir / "local", clock)
        self._registries = Registries()
        self._plain: PlainNode | None = None  # outside a swarm
        self._plain_running: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._error = ""
        self._alone = False  # the next manager here goes on without the others
        self._changing = asyncio.Lock()  # init, join and leave exclude each other

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until cancelled; packets, names and containers carry on without us."""
        for lack in await asyncio.to_thread(missing):
            log.warning("%s", lack)
        if self._config.balancer == "ipvs" and (lack := await asyncio.to_thread(ipvs.missing)):
            raise Unavailable(f"{lack}; or start without --balancer ipvs")
        if not self._balances_sockets:
            await asyncio.to_thread(self._hooks.discard)
        try:
            self._config.data_dir.mkdir(mode=0o710, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"cannot use {self._config.data_dir}: {error.strerror}; choose another with --data-dir"
            ) from error
        self._identity = identities.load(self._config.data_dir)
        if self._identity is not None:
            self._start()
        else:
            self._start_plain()
        try:
            await ApiServer(self, self._config.socket, self._config.group).run(ready)
        finally:
            await self._stop()
            await self._stop_plain()
            await self._engine.close()
            await self._service.close()

    # --- what the API asks --------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return socket.gethostname()

    @property
    def state(self) -> LocalState:
        if self._identity is None:
            return "inactive"
        if self._identity.vault.locked:
            return "locked"
        if self._session is not None and self._session.state == "removed":
            return "error"
        if self._error:
            return "error"
        if self.manager is None and self._session is not None and self._session.state == "connecting":
            return "pending"
        return "active"

    @property
    def error(self) -> str:
        role = self._role.error if self._role else ""
        return self._error or role or (self._session.error if self._session else "")

    @property
    def node_id(self) -> NodeID | None:
        return self._identity.facts.node_id if self._identity else None

    @property
    def node_addr(self) -> str:
        return str(self._identity.facts.addr) if self._identity else ""

    @property
    def remote_managers(self) -> tuple[RemoteManager, ...]:
        if self._identity is None:
            return ()
        if self.manager is not None:
            nodes = self.manager.nodes()
            return tuple(RemoteManager(addr=n.manager_addr, node_id=n.id) for n in nodes if n.manager_addr)
        return tuple(RemoteManager(addr=addr) for addr in self._known_managers())

    @property
    def manager(self) -> Manager | None:
        return self._role.manager if self._role else None

    @property
    def is_manager(self) -> bool:
        return self._identity is not None and self._current().facts.role == "manager"

    @property
    def attached(self) -> AttachedContainers | None:
        return self._plain.attached if self._plain is not None else self._attached

    @property
    def local_networks(self) -> LocalNetworks:
        return self._local

    @property
    def registries(self) -> Registries:
        return self._registries

    @property
    def data_dir(self) -> Path:
        return self._config.data_dir

    @property
    def generic(self) -> tuple[GenericResource, ...]:
        return self._config.generic

    @property
    def labels(self) -> dict[str, str]:
        return self._config.labels

    @property
    def _balances_sockets(self) -> bool:
        return self._config.socket_balancing and self._config.balancer == "nftables"

    @property
    def socket_balancing(self) -> str:
        if not self._config.socket_balancing:
            return "off: started with --socket-balancing=off"
        if not self._balances_sockets:
            return f"off: started with --balancer {self._config.balancer}"
        said = self._hooks.said
        return "on" if said == "" else f"off: {said or 'in no swarm'}"

    async def engine_socket(self) -> Path | None:
        return await self._service.ready() if self._config.engine == "podman" else None

    async def engine_info(self) -> EngineInfo:
        return await self._engine.info()

    async def networks(self) -> Insights:
        if self.manager is not None:
            return self.manager.insights()
        if self._identity is None:
            return Insights(networks=())
        return await inquiry.networks(self._identity, self._session.view if self._session else {})

    async def network(self, ref: str) -> Insight:
        if self.manager is not None:
            return self.manager.insight(ref)
        if self._identity is None:
            raise NotFound(f"network {ref} not found")
        return await inquiry.network(self._identity, self._session.view if self._session else {}, ref)

    async def trace(self, question: Question) -> Trace:
        if self._tracing is None:
            raise Unavailable(NOT_IN)
        return await self._tracing.trace(question)

    async def drift(self) -> list[str]:
        if self._plain is not None:
            return await self._plain.network.differences()
        return await self._worker.equal_to_plan() if self._worker else []

    # --- joining and leaving ------------------------------------------------------------------------------------

    async def init(self, request: SwarmInit) -> NodeID:
        async with self._changing:
            if self.state == "locked":
                raise Unavailable(LOCKED)
            if request.force_new_cluster and self.is_manager:
                return await self._recover()
            await self._require_outside()
            place = await self._place(request)
            return await self._settle(await founding.found(request, place, self._config, self.clock.now()))

    async def restore(self, snapshot: bytes, request: SwarmInit) -> NodeID:
        async with self._changing:
            await self._require_outside()
            place = await self._place(request)
            return await self._settle(await founding.restore(snapshot, place, self._config, self.clock.now()))

    async def _place(self, request: SwarmInit) -> founding.Place:
        addr, vtep, listen = await self._addresses(request)
        return founding.Place(hostname=self.name, addr=addr, vtep=vtep, listen=listen)

    async def join(self, request: SwarmJoin) -> None:
        async with self._changing:
            await self._require_outside()
            addr, vtep, listen = await self._addresses(request)
            identity = await membership.join(
                request.remote_addrs,
                request.join_token,
                data_dir=self.data_dir,
                addr=addr,
                vtep=vtep,
                listen=listen,
                availability=request.availability,
                hostname=self.name,
                store=self._config.store,
                etcd=await asyncio.to_thread(etcd.is_installed),
            )
            await self._settle(identity)

    async def leave(self, *, force: bool) -> None:
        async with self._changing:
            if self._identity is None:
                raise Unavailable(NOT_IN)
            if self._identity.vault.locked and not force:
                raise Unavailable(LOCKED)
            if self.is_manager and not force:
                raise Unavailable(self._warning())
            identity, was_manager = self._current(), self.is_manager
            alone = was_manager and identity.facts.managers in ((), (identity.manager_addr,))
            if not alone:
                try:
                    await membership.leave(identity)
                except HivemeshError as error:
                    if not force:
                        raise Unavailable(f"{error}; leave all the same with --force") from error
                    log.warning("leaving without telling the managers: %s", error)
            worker = self._worker
            await self._stop()
            if worker is not None:
                await worker.dissolve()
            leave_swarm(self._local_dir, self._local)
            if was_manager:
                await ManagerRole(lambda: identity, self._config, self.clock).dissolve(last=alone)
            identities.forget(self.data_dir)
            self._identity = self._worker = self._tracing = None
            self._error = ""
            self._start_plain()

    async def unlock(self, key: str) -> None:
        async with self._changing:
            if self._identity is None:
                raise Conflict(NOT_LOCKED)
            self._identity.vault.unlock(key)
            log.info("this manager is unlocked")
            try:
                await self._first_attempt()
            except TimeoutError:
                raise Unavailable(SLOW) from None

    def _warning(self) -> str:
        """What a manager that wants to leave should know."""
        nodes = self.manager.nodes() if self.manager is not None else ()
        managers = [node for node in nodes if node.acting_role == "manager"]
        reachable = [node for node in managers if node.state == "ready"]
        if self.manager is not None and len(managers) <= 1:
            return LAST_MANAGER
        text = MANAGER_LEAVES
        if self.manager is not None and len(reachable) - 1 < len(managers) // 2 + 1:
            text += (
                f"Removing this node leaves {len(reachable) - 1} managers out of {len(managers)}. Without a Raft "
                "quorum your swarm will be inaccessible. "
            )
        return text + ONE_OF_SEVERAL

    async def _recover(self) -> NodeID:
        """Go on as the only manager, with what this one knows: a lost majority has no other way out."""
        await self._stop()
        self._alone = True
        self._start()
        try:
            await self._first_attempt()
        except TimeoutError:
            raise Unavailable(SLOW) from None
        assert self._identity is not None
        return self._identity.facts.node_id

    async def _require_outside(self) -> None:
        if self._identity is not None:
            raise Unavailable(ALREADY)
        lacking = await asyncio.to_thread(missing)
        if lacking:
            raise Unavailable("this machine cannot be part of a swarm: " + "; ".join(lacking))

    async def _addresses(self, request: SwarmInit | SwarmJoin) -> tuple[Address, Address, str]:
        """What to advertise, where the tunnels end, and where to listen. Raises `Invalid`."""
        local = await asyncio.to_thread(local_addresses)
        addr = choose_address(request.advertise_addr, "advertise address", local)
        vtep = choose_address(request.data_path_addr, "data path address", local) if request.data_path_addr else addr
        return addr, vtep, listen_address(request.listen_addr, local)

    async def _settle(self, identity: Identity) -> NodeID:
        """Start the swarm's side and wait until it works. When a new manager cannot start, the swarm is undone."""
        await self._stop_plain()
        self._identity = identity
        self._start()
        try:
            await self._first_attempt()
        except TimeoutError:
            raise Unavailable(SLOW) from None
        except HivemeshError:
            await self._stop()
            await founding.undo(self._config, last=identity.facts.managers == (identity.manager_addr,))
            self._identity, self._error = None, ""
            self._start_plain()
            raise
        return identity.facts.node_id

    # --- the swarm's side, which may be built several times -------------------------------------------------------

    def _current(self) -> Identity:
        """This node's identity as it is by now: the managers it knows, and its role, change."""
        identity = self._session.identity if self._session is not None else self._identity
        assert identity is not None
        return identity

    def _start(self) -> None:
        self._ready = asyncio.Event()
        self._running = asyncio.create_task(self._keep_running(), name="swarm")

    async def _first_attempt(self) -> None:
        """Until the node is usable. Raises what stopped it, or `TimeoutError`."""
        assert self._running is not None
        waiting = asyncio.create_task(self._ready.wait())
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await waiting
        finally:
            waiting.cancel()
        if self._error:
            raise Unavailable(self._error)

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        self._running = self._role = self._session = self._attached = None

    # --- outside a swarm ------------------------------------------------------------------------------------------

    @property
    def _local_dir(self) -> Path:
        return self.data_dir / "local"

    def _start_plain(self) -> None:
        self._plain = self._build_plain()
        self._plain_running = asyncio.create_task(self._keep_plain(), name="plain node")

    async def _stop_plain(self) -> None:
        if self._plain_running is not None:
            self._plain_running.cancel()
            await asyncio.gather(self._plain_running, return_exceptions=True)
        self._plain = self._plain_running = None

    def _build_plain(self) -> PlainNode:
        return PlainNode(
            engine=self._engine,
            applier=Applier(),
            resolver=Resolver(self._config.run_dir / "resolver.sock", clock=self.clock),
            directory=self._local_dir,
            clock=self.clock,
            local=self._local,
        )

    async def _keep_plain(self) -> None:
        while True:
            assert self._plain is not None
            try:
                await self._plain.run()
            except Exception as error:
                log.error("the networks of this node failed: %s", _leaves(error), exc_info=error)
            await self.clock.sleep(RESTART_DELAY)
            self._plain = self._build_plain()

    async def _keep_running(self) -> None:
        while True:
            try:
                await self._run_swarm()
                return  # removed from the swarm: the session's state says so
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                causes = _leaves(error)
                self._error = "; ".join(str(cause) or type(cause).__name__ for cause in causes)
                expected = all(isinstance(cause, HivemeshError) for cause in causes)
                log.error("the swarm's side of this node failed: %s", self._error, exc_info=None if expected else error)
                self._ready.set()
            await self.clock.sleep(RESTART_DELAY)
            self._ready = asyncio.Event()

    async def _run_swarm(self) -> None:
        identity = self._identity = self._current()
        async with asyncio.TaskGroup() as tasks:

            def assign(view: View, revision: int) -> None:
                worker.assign(view, revision)
                attached.assign(view)

            sender = LogSender(self._engine, lambda: session.identity, lambda task: worker.container_of(task))
            linux = Linux(self._hooks)
            tracing = Tracing(
                node=self.name,
                linux=linux,
                worker=lambda: worker,
                identity=lambda: session.identity,
                manager=lambda: self.manager,
            )
            session = Session(
                identity,
                assign=assign,
                describe=self._describe,
                clock=self.clock,
                logs=sender.heed,
                examine=tracing.heed,
            )
            self._session = session
            serving = asyncio.Event()
            acting = tasks.create_task(self._act(session, serving), name="manager")
            if identity.facts.role == "manager" and not identity.vault.locked:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MANAGER_FIRST):
                        await serving.wait()
            worker = Worker(
                port=session,
                engine=self._engine,
                applier=Applier(linux),
                resolver=Resolver(self._config.run_dir / "resolver.sock", clock=self.clock),
                data_dir=self.data_dir,
                vtep=identity.facts.vtep,
                clock=self.clock,
                balancer=self._config.balancer,
                hooks=self._hooks if self._balances_sockets else None,
                run_dir=self._config.run_dir,
                local=self._local,
            )
            managers = membership.Managers(lambda: session.identity)
            attached = AttachedContainers(
                sandboxes=worker.network,
                files=SandboxFiles(self._local_dir / "files"),
                managers=Grants(self._local, managers, worker.network.ports_in_use),
                engine=self._engine,
                directory=self._local_dir,
                clock=self.clock,
                local=self._local,
            )
            self._worker, self._attached, self._tracing = worker, attached, tracing
            working = tasks.create_task(worker.run(), name="worker")
            beside = tasks.create_task(attached.run(), name="attached containers")
            connection = tasks.create_task(self._connect(session), name="session")
            announcing = tasks.create_task(self._announce(session, serving), name="announce")
            try:
                await connection
            finally:
                await sender.close()
                await tracing.close()
            working.cancel()
            beside.cancel()
            announcing.cancel()
            acting.cancel()

    async def _act(self, session: Session, serving: asyncio.Event) -> None:
        """Be a manager while this node has the role; `serving` is set when the first time has come."""
        await session.identity.vault.opened()
        while True:
            if session.identity.facts.role == "manager":
                await self._manage(session, serving)
            await session.role_is("manager")

    async def _connect(self, session: Session) -> None:
        """As `Session.run`, once this node is unlocked; until then it goes on with what it was told before."""
        await session.identity.vault.opened()
        await session.run()

    async def _manage(self, session: Session, serving: asyncio.Event) -> None:
        """Until the role is taken away. Raises what stops a manager."""
        alone, self._alone = self._alone, False
        self._role = role = ManagerRole(self._current, self._config, self.clock, alone=alone)
        managing = asyncio.create_task(role.run(serving), name="managing")
        demoted = asyncio.create_task(session.role_is("worker"))
        try:
            await asyncio.wait({managing, demoted}, return_when=asyncio.FIRST_COMPLETED)
            if managing.done():
                managing.result()
        finally:
            for each in (managing, demoted):
                each.cancel()
            await asyncio.gather(managing, demoted, return_exceptions=True)
        self._role = None
        await role.dissolve()

    async def _announce(self, session: Session, serving: asyncio.Event) -> None:
        if not self.is_manager and self._identity is not None and (self._identity.data_dir / "agent").is_dir():
            self._ready.set()  # a worker that was here before works on without its managers
        await session.ready()
        if self.is_manager and session.state == "ready":
            await serving.wait()
        self._error = ""
        self._ready.set()

    async def _describe(self) -> NodeDescription:
        assert self._identity is not None
        return await describe(self._engine, self._identity.facts.vtep, self.name, self.labels, self._config.generic)

    def _known_managers(self) -> Sequence[str]:
        identity = self._session.identity if self._session else self._identity
        return identity.facts.managers if identity else ()

    def _build_engine(self) -> Engine:
        build: dict[str, Callable[[], Engine]] = {
            "podman": lambda: PodmanEngine(self._service),
            "process": lambda: ProcessEngine(self._config.run_dir / "process", self._config.process_images),
        }
        if self._config.engine not in build:
            raise Invalid(f"unknown engine {self._config.engine!r}: choose one of {', '.join(build)}")
        return build[self._config.engine]()


def _leaves(error: BaseException) -> list[BaseException]:
    """The exceptions inside a group."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
