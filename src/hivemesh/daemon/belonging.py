"""Whether this machine is part of a swarm: founding one, joining, leaving, and what runs here meanwhile.

There is always one side: the swarm's (`side.py`) or, outside of one, the plain node's. Each is built anew when it
failed. Identity on disk and the running side change together, one change at a time.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence

from hivemesh.agent import identity as identities
from hivemesh.agent import join as membership
from hivemesh.agent.advertise import choose_address, listen_address
from hivemesh.agent.attached import leave_swarm
from hivemesh.agent.facts import local_addresses
from hivemesh.agent.identity import Identity
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.plain import PlainNode
from hivemesh.agent.resolver import Resolver
from hivemesh.agent.vault import LOCKED, NOT_LOCKED
from hivemesh.api.local import LocalState
from hivemesh.clock import Clock
from hivemesh.config import DaemonConfig
from hivemesh.control.manager import Manager
from hivemesh.daemon import etcd, founding
from hivemesh.daemon.manager import ManagerRole
from hivemesh.daemon.side import SwarmSide
from hivemesh.dataplane.apply import Applier
from hivemesh.engine.api import Engine
from hivemesh.kernel.probe import missing
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.model.addr import Address
from hivemesh.model.errors import Conflict, HivemeshError, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.wire.engine import SwarmInit, SwarmJoin

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
RESTART_DELAY = 1.0
"""Seconds before a side is built again after it failed."""


class Belonging:
    """`start` and `stop` are the daemon's; the rest is what the API asks. `LocalNode` says what each verb promises."""

    def __init__(
        self, config: DaemonConfig, clock: Clock, *, engine: Engine, local: LocalNetworks, hooks: SocketHooks
    ) -> None:
        self.side: SwarmSide | None = None
        """The swarm's, as it was built last; None outside a swarm."""
        self.plain: PlainNode | None = None
        """Outside a swarm."""
        self._config = config
        self._clock = clock
        self._engine = engine
        self._local = local
        self._hooks = hooks
        self._identity: Identity | None = None
        self._running: asyncio.Task[None] | None = None
        self._plain_running: asyncio.Task[None] | None = None
        self._usable = asyncio.Event()  # or it failed
        self._error = ""
        self._alone = False  # the next manager here goes on without the others
        self._changing = asyncio.Lock()  # init, join and leave exclude each other

    def start(self) -> None:
        """As what the disk says that this machine is."""
        self._identity = identities.load(self._config.data_dir)
        if self._identity is not None:
            self._start_swarm()
        else:
            founding.sweep(self._config)
            self._start_plain()

    async def stop(self) -> None:
        """Leaves network and containers as they are."""
        await self._stop_swarm()
        await self._stop_plain()

    # --- how it stands ----------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity | None:
        """As it is by now, for the managers it knows and its role change; None outside a swarm."""
        return self.side.session.identity if self.side is not None else self._identity

    @property
    def state(self) -> LocalState:
        if self._identity is None:
            return "inactive"
        if self._identity.vault.locked:
            return "locked"
        session = self.side.session.state if self.side is not None else ""
        if session == "removed" or self._error:
            return "error"
        return "pending" if self.manager is None and session == "connecting" else "active"

    @property
    def error(self) -> str:
        """Why `state` is `error`, or what is wrong though it is not; else empty."""
        if self._error or self.side is None:
            return self._error
        return (self.side.role.error if self.side.role is not None else "") or self.side.session.error

    @property
    def manager(self) -> Manager | None:
        """The managers' facade, when this node is one and ready to answer."""
        return self.side.manager if self.side is not None else None

    @property
    def is_manager(self) -> bool:
        """It has the role, though `manager` may still be starting."""
        return self.identity is not None and self.identity.facts.role == "manager"

    @property
    def known_managers(self) -> Sequence[str]:
        """Their addresses, host:port."""
        return self.identity.facts.managers if self.identity is not None else ()

    # --- becoming part of a swarm -----------------------------------------------------------------------------------

    async def init(self, request: SwarmInit) -> NodeID:
        async with self._changing:
            if self.state == "locked":
                raise Unavailable(LOCKED)
            if request.force_new_cluster and self.is_manager:
                return await self._recover()
            await self._require_outside()
            place = await self._place(request)
            return await self._settle(await founding.found(request, place, self._config, self._clock.now()))

    async def restore(self, snapshot: bytes, request: SwarmInit) -> NodeID:
        async with self._changing:
            await self._require_outside()
            place = await self._place(request)
            return await self._settle(await founding.restore(snapshot, place, self._config, self._clock.now()))

    async def join(self, request: SwarmJoin) -> None:
        async with self._changing:
            await self._require_outside()
            addr, vtep, listen = await _addresses(request)
            identity = await membership.join(
                request.remote_addrs,
                request.join_token,
                data_dir=self._config.data_dir,
                addr=addr,
                vtep=vtep,
                listen=listen,
                availability=request.availability,
                hostname=socket.gethostname(),
                store=self._config.store,
                etcd=await asyncio.to_thread(etcd.is_installed),
            )
            await self._settle(identity)

    async def unlock(self, key: str) -> None:
        async with self._changing:
            if self._identity is None:
                raise Conflict(NOT_LOCKED)
            self._identity.vault.unlock(key)
            log.info("this manager is unlocked")
            try:
                await self._first_attempt()
            except TimeoutError:  # it waits for others, which may be locked too: `info` says so
                log.warning("this manager is unlocked, and not ready yet: %s", self.error or "it is starting")

    async def _recover(self) -> NodeID:
        """Go on as the only manager, with what this one knows: a lost majority has no other way out."""
        await self._stop_swarm()
        self._alone = True
        self._start_swarm()
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

    async def _place(self, request: SwarmInit) -> founding.Place:
        addr, vtep, listen = await _addresses(request)
        return founding.Place(hostname=socket.gethostname(), addr=addr, vtep=vtep, listen=listen)

    async def _settle(self, identity: Identity) -> NodeID:
        """Start the swarm's side and wait until it works. When a new manager cannot start, the swarm is undone."""
        await self._stop_plain()
        self._identity = identity
        self._start_swarm()
        try:
            await self._first_attempt()
        except TimeoutError:
            raise Unavailable(SLOW) from None
        except HivemeshError:
            await self._stop_swarm()
            await founding.undo(self._config, last=identity.facts.managers == (identity.manager_addr,))
            self._identity, self._error = None, ""
            self._start_plain()
            raise
        return identity.facts.node_id

    async def _first_attempt(self) -> None:
        """Until the node is usable. Raises what stopped it, or `TimeoutError`."""
        async with asyncio.timeout(START_TIMEOUT):
            await self._usable.wait()
        if self._error:
            raise Unavailable(self._error)

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def leave(self, *, force: bool) -> None:
        async with self._changing:
            identity = self.identity
            if identity is None:
                raise Unavailable(NOT_IN)
            if identity.vault.locked and not force:
                raise Unavailable(LOCKED)
            if self.is_manager and not force:
                raise Unavailable(self._warning())
            was_manager = self.is_manager
            alone = was_manager and identity.facts.managers in ((), (identity.manager_addr,))
            if not alone:
                try:
                    await membership.leave(identity)
                except HivemeshError as error:
                    if not force:
                        raise Unavailable(f"{error}; leave all the same with --force") from error
                    log.warning("leaving without telling the managers: %s", error)
            side = self.side
            await self._stop_swarm()
            if side is not None:
                await side.worker.dissolve()
            leave_swarm(self._config.local_dir, self._local)
            if was_manager:
                await ManagerRole(lambda: identity, self._config, self._clock).dissolve(last=alone)
            identities.forget(self._config.data_dir)
            self._identity, self._error = None, ""
            plain = self._start_plain()
            with contextlib.suppress(TimeoutError):  # the node has left all the same
                async with asyncio.timeout(START_TIMEOUT):
                    await plain.adopted()

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

    # --- the swarm's side, which may be built several times ---------------------------------------------------------

    def _start_swarm(self) -> None:
        self._usable = asyncio.Event()
        self._running = asyncio.create_task(self._keep_running(), name="swarm")

    async def _stop_swarm(self) -> None:
        running, self._running = self._running, None
        await _end(running)
        self.side = None

    async def _keep_running(self) -> None:
        while True:
            try:
                await self._run_side()
                return  # removed from the swarm: the session's state says so
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                causes = _leaves(error)
                self._error = "; ".join(str(cause) or type(cause).__name__ for cause in causes)
                expected = all(isinstance(cause, HivemeshError) for cause in causes)
                log.error("the swarm's side of this node failed: %s", self._error, exc_info=None if expected else error)
                self._usable.set()
            if self._running is None:
                return  # told to end while it was failing
            await self._clock.sleep(RESTART_DELAY)
            self._usable = asyncio.Event()

    async def _run_side(self) -> None:
        identity = self._identity = self.identity
        assert identity is not None
        self.side = SwarmSide(
            identity,
            self._config,
            self._clock,
            engine=self._engine,
            local=self._local,
            hooks=self._hooks,
            as_manager=self._as_manager,
            usable=lambda: self._usable.set(),
            accepted=self._works,
        )
        await self.side.run()

    def _works(self) -> None:
        self._error = ""
        self._usable.set()

    def _as_manager(self) -> ManagerRole:
        def current() -> Identity:
            assert self.identity is not None
            return self.identity

        alone, self._alone = self._alone, False
        return ManagerRole(current, self._config, self._clock, alone=alone)

    # --- outside a swarm --------------------------------------------------------------------------------------------

    def _start_plain(self) -> PlainNode:
        self.plain = plain = self._build_plain()
        self._plain_running = asyncio.create_task(self._keep_plain(), name="plain node")
        return plain

    async def _stop_plain(self) -> None:
        running, self._plain_running = self._plain_running, None
        await _end(running)
        self.plain = None

    def _build_plain(self) -> PlainNode:
        return PlainNode(
            engine=self._engine,
            applier=Applier(),
            resolver=Resolver(self._config.run_dir / "resolver.sock", clock=self._clock),
            directory=self._config.local_dir,
            clock=self._clock,
            local=self._local,
        )

    async def _keep_plain(self) -> None:
        while True:
            assert self.plain is not None
            try:
                await self.plain.run()
            except Exception as error:
                log.error("the networks of this node failed: %s", _leaves(error), exc_info=error)
            if self._plain_running is None:
                return  # told to end while it was failing
            await self._clock.sleep(RESTART_DELAY)
            self.plain = self._build_plain()


async def _addresses(request: SwarmInit | SwarmJoin) -> tuple[Address, Address, str]:
    """What to advertise, where the tunnels end, and where to listen. Raises `Invalid`."""
    local = await asyncio.to_thread(local_addresses)
    addr = choose_address(request.advertise_addr, "advertise address", local)
    vtep = choose_address(request.data_path_addr, "data path address", local) if request.data_path_addr else addr
    return addr, vtep, listen_address(request.listen_addr, local)


async def _end(running: asyncio.Task[None] | None) -> None:
    """What keeps a side running looks whether it is still wanted, too: a group of tasks that is ending for a failure
    swallows a cancellation that comes meanwhile (CPython 3.11, `asyncio.TaskGroup.__aexit__`)."""
    if running is not None:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _leaves(error: BaseException) -> list[BaseException]:
    """The exceptions inside a group."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
