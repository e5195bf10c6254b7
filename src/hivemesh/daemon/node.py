"""One machine's daemon: its sockets, its engine, and what the API asks of it."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp.web import RouteDef

from hivemesh.agent import inquiry
from hivemesh.agent.attached import AttachedContainers
from hivemesh.agent.local import LocalNetworks
from hivemesh.api.local import LocalState, RemoteManager
from hivemesh.api.server import ApiServer
from hivemesh.clock import Clock
from hivemesh.config import DaemonConfig
from hivemesh.control.manager import Manager
from hivemesh.daemon import doctoring
from hivemesh.daemon.belonging import NOT_IN, Belonging
from hivemesh.daemon.measuring import dressed, nodes_named, scraped
from hivemesh.daemon.tracing import origin
from hivemesh.daemon.web import WebServer
from hivemesh.engine.api import Engine, EngineInfo
from hivemesh.engine.podman import PodmanEngine
from hivemesh.engine.process import ProcessEngine
from hivemesh.engine.service import PodmanService
from hivemesh.kernel import ipvs
from hivemesh.kernel.probe import missing
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.model.errors import Invalid, NotFound, Unavailable
from hivemesh.model.generic import GenericResource
from hivemesh.model.ids import NodeID
from hivemesh.registry.client import Registries
from hivemesh.web.page import page_routes
from hivemesh.wire.doctor import Asked, Diagnosis
from hivemesh.wire.engine import SwarmInit, SwarmJoin
from hivemesh.wire.feed import Entry, What
from hivemesh.wire.insight import Insight, Insights
from hivemesh.wire.topology import Picture
from hivemesh.wire.trace import Question, Trace

if TYPE_CHECKING:
    from hivemesh.web.hub import Hub

log = logging.getLogger("hivemesh.daemon")


class Daemon:
    """Implements the API's `LocalNode`."""

    def __init__(self, config: DaemonConfig, clock: Clock) -> None:
        self.clock = clock
        self._config = config
        self._service = PodmanService(config.run_dir)
        self._engine = _build_engine(config, self._service)
        self._hooks = SocketHooks(config.run_dir / "bpf")
        self._hub: Hub | None = None  # for who looks at the swarm
        self._local = LocalNetworks(config.local_dir, clock)
        self._registries = Registries()
        self._belonging = Belonging(config, clock, engine=self._engine, local=self._local, hooks=self._hooks)

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until cancelled; packets, names and containers carry on without us."""
        for lack in await asyncio.to_thread(missing):
            log.warning("%s", lack)
        if self._config.balancer == "ipvs" and (lack := await asyncio.to_thread(ipvs.missing)):
            raise Unavailable(f"{lack}; or start without --balancer ipvs")
        if not self._config.balances_sockets:
            await asyncio.to_thread(self._hooks.discard)
        try:
            self._config.data_dir.mkdir(mode=0o710, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"cannot use {self._config.data_dir}: {error.strerror}; choose another with --data-dir"
            ) from error
        self._belonging.start()
        pages = WebServer(self._config, self._web_routes(), self.clock, name=self.name)
        web = asyncio.create_task(pages.run(), name="web port")
        try:
            await ApiServer(self, self._config.socket, self._config.group).run(ready)
        finally:
            web.cancel()
            await asyncio.gather(web, return_exceptions=True)
            if self._hub is not None:
                await self._hub.close()
            await self._belonging.stop()
            await self._engine.close()
            await self._service.close()

    def _web_routes(self) -> list[RouteDef]:
        """What the web port serves."""
        return [
            scraped(lambda: side.measuring if (side := self._belonging.side) is not None else None),
            *page_routes(self._looked_at, self._trace_at),
        ]

    # --- this node and its swarm ------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return socket.gethostname()

    @property
    def state(self) -> LocalState:
        return self._belonging.state

    @property
    def error(self) -> str:
        return self._belonging.error

    @property
    def node_id(self) -> NodeID | None:
        identity = self._belonging.identity
        return identity.facts.node_id if identity is not None else None

    @property
    def node_addr(self) -> str:
        identity = self._belonging.identity
        return str(identity.facts.addr) if identity is not None else ""

    @property
    def remote_managers(self) -> tuple[RemoteManager, ...]:
        if self.manager is not None:
            nodes = self.manager.nodes()
            return tuple(RemoteManager(addr=n.manager_addr, node_id=n.id) for n in nodes if n.manager_addr)
        return tuple(RemoteManager(addr=addr) for addr in self._belonging.known_managers)

    @property
    def manager(self) -> Manager | None:
        return self._belonging.manager

    @property
    def is_manager(self) -> bool:
        return self._belonging.is_manager

    async def init(self, request: SwarmInit) -> NodeID:
        return await self._belonging.init(request)

    async def restore(self, snapshot: bytes, request: SwarmInit) -> NodeID:
        return await self._belonging.restore(snapshot, request)

    async def join(self, request: SwarmJoin) -> None:
        await self._belonging.join(request)

    async def leave(self, *, force: bool) -> None:
        await self._belonging.leave(force=force)

    async def unlock(self, key: str) -> None:
        await self._belonging.unlock(key)

    # --- what is here -----------------------------------------------------------------------------------------------

    @property
    def attached(self) -> AttachedContainers | None:
        home = self._belonging.plain or self._belonging.side
        return home.attached if home is not None else None

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
    def socket_balancing(self) -> str:
        if not self._config.socket_balancing:
            return "off: started with --socket-balancing=off"
        if not self._config.balances_sockets:
            return f"off: started with --balancer {self._config.balancer}"
        said = self._hooks.said
        return "on" if said == "" else f"off: {said or 'in no swarm'}"

    async def engine_socket(self) -> Path | None:
        return await self._service.ready() if self._config.engine == "podman" else None

    async def engine_info(self) -> EngineInfo:
        return await self._engine.info()

    # --- looking into it --------------------------------------------------------------------------------------------

    async def networks(self) -> Insights:
        if self.manager is not None:
            return self.manager.insights()
        identity, side = self._belonging.identity, self._belonging.side
        if identity is None:
            return Insights(networks=())
        return await inquiry.networks(identity, side.session.view if side is not None else {})

    async def network(self, ref: str) -> Insight:
        if self.manager is not None:
            return self.manager.insight(ref)
        identity, side = self._belonging.identity, self._belonging.side
        if identity is None:
            raise NotFound(f"network {ref} not found")
        return await inquiry.network(identity, side.session.view if side is not None else {}, ref)

    async def trace(self, question: Question) -> Trace:
        side, manager = self._belonging.side, self.manager
        if side is None:
            raise Unavailable(NOT_IN)
        if manager is not None:
            node, question = origin(manager.tasks(), manager.nodes(), question)
            if node is not None and node != self.node_id:
                return await self._trace_at(node, question)
        return await side.tracing.trace(question)

    async def _trace_at(self, node: NodeID, question: Question) -> Trace:
        """A way that begins on any node; a manager asks it."""
        if node == self.node_id:
            return await self.trace(question)
        manager = self.manager
        if manager is None or manager.examiner is None:
            raise Unavailable("this node is no manager that answers: only those ask other nodes")
        return await manager.examiner.trace(manager.node(node), question)

    def feed(self, what: What, node: str) -> AsyncGenerator[Entry, None]:
        side, manager = self._belonging.side, self.manager
        if manager is not None and manager.feeds is not None:
            return dressed(manager.feeds.read(nodes_named(manager, node), what), manager)
        if side is None:
            raise Unavailable(NOT_IN)
        if node not in ("", self.name, self.node_id):
            raise Unavailable(f"this node tells of itself only: ask a manager about node {node}")
        return side.measuring.source(what)

    async def topology(self, *, detailed: bool | None) -> Picture:
        return await self._looked_at().picture(detailed=detailed)

    def _looked_at(self) -> "Hub":
        if self._hub is None:
            from hivemesh.web.hub import Hub  # the managers' part, which a worker does without

            self._hub = Hub(lambda: self.manager, self.clock)
        return self._hub

    async def doctor(self, asked: Asked) -> Diagnosis:
        if self._belonging.side is None:
            return await doctoring.alone(self.name, self._config, asked)
        return await self._belonging.side.doctoring.diagnose(asked)

    async def drift(self) -> list[str]:
        plain, side = self._belonging.plain, self._belonging.side
        if plain is not None:
            return [str(difference) for difference in await plain.network.differences()]
        return [str(difference) for difference in await side.worker.equal_to_plan()] if side is not None else []


def _build_engine(config: DaemonConfig, service: PodmanService) -> Engine:
    build: dict[str, Callable[[], Engine]] = {
        "podman": lambda: PodmanEngine(service),
        "process": lambda: ProcessEngine(config.run_dir / "process", config.process_images),
    }
    if config.engine not in build:
        raise Invalid(f"unknown engine {config.engine!r}: choose one of {', '.join(build)}")
    return build[config.engine]()
