"""The swarm's side of a node, from one start to its end: what looks after tasks and networks, and talks to managers.

It is built anew when it failed, and ends by itself only when the node was removed from the swarm.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from hivemesh.agent import join as membership
from hivemesh.agent.attached import AttachedContainers
from hivemesh.agent.facts import describe
from hivemesh.agent.feeds import FeedSender
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.grants import Grants
from hivemesh.agent.identity import Identity
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.logs import LogSender
from hivemesh.agent.picture import Pictures
from hivemesh.agent.resolver import Resolver
from hivemesh.agent.session import Session
from hivemesh.agent.worker import Worker
from hivemesh.clock import Clock
from hivemesh.config import DaemonConfig
from hivemesh.control.manager import Manager
from hivemesh.daemon.doctoring import Doctoring
from hivemesh.daemon.manager import ManagerRole
from hivemesh.daemon.measuring import Measuring
from hivemesh.daemon.tracing import Tracing
from hivemesh.dataplane.apply import Applier
from hivemesh.engine.api import Engine
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.model.node import NodeDescription
from hivemesh.wire.control import View

MANAGER_FIRST = 3.0
"""Seconds that a starting manager gets before tasks and networks are looked after: other managers may be away."""


class SwarmSide:
    """`as_manager` makes the manager's part, whenever this node has that role.

    `usable` is called once the node can be used, be it without a word of the managers yet; `accepted` once they know it
    (and answer, if it is one of them), which `usable` then need not say.
    """

    def __init__(
        self,
        identity: Identity,
        config: DaemonConfig,
        clock: Clock,
        *,
        engine: Engine,
        local: LocalNetworks,
        hooks: SocketHooks,
        as_manager: Callable[[], ManagerRole],
        usable: Callable[[], None],
        accepted: Callable[[], None],
    ) -> None:
        self.role: ManagerRole | None = None
        """While this node is a manager, and after that has failed."""
        self._as_manager = as_manager
        self._usable = usable
        self._accepted = accepted
        self._config = config
        self._engine = engine
        self._local = local
        self._known_here = (config.data_dir / "agent").is_dir()  # before the worker makes it
        name, facts = socket.gethostname(), identity.facts
        self._name = name
        balancing_hooks = hooks if config.balances_sockets else None
        linux = Linux(hooks)
        self._logs = LogSender(engine, lambda: self.session.identity, lambda task: self.worker.container_of(task))
        self._feeds = FeedSender(
            lambda: self.session.identity,
            lambda what: pictures.told() if what == "picture" else self.measuring.source(what),
        )
        pictures = Pictures(
            node=name,
            node_id=facts.node_id,
            vtep=facts.vtep,
            linux=linux,
            worker=lambda: self.worker,
            error=lambda: self.session.error,
            clock=clock,
        )
        self.tracing = Tracing(
            node=name,
            linux=linux,
            worker=lambda: self.worker,
            identity=lambda: self.session.identity,
            manager=lambda: self.manager,
        )
        self.doctoring = Doctoring(
            name=name,
            config=config,
            linux=linux,
            session=lambda: self.session,
            worker=lambda: self.worker,
            manager=lambda: self.manager,
            problem=lambda: self.role.error if self.role is not None else "",
            sockets=lambda: hooks.said or "" if config.balances_sockets else "",
            now=clock.now,
        )
        self.session = Session(
            identity,
            assign=self._assign,
            describe=self._describe,
            clock=clock,
            logs=self._logs.heed,
            examine=self.tracing.heed,
            trace=self.tracing.heed,
            inspect=self.doctoring.heed,
            feed=self._feeds.heed,
        )
        resolver = Resolver(config.run_dir / "resolver.sock", clock=clock)
        self.worker = Worker(
            port=self.session,
            engine=engine,
            applier=Applier(linux),
            resolver=resolver,
            data_dir=config.data_dir,
            vtep=facts.vtep,
            clock=clock,
            balancer=config.balancer,
            hooks=balancing_hooks,
            counts=config.counts,
            run_dir=config.run_dir,
            local=local,
        )
        network, managers = self.worker.network, membership.Managers(lambda: self.session.identity)
        self.attached = AttachedContainers(
            sandboxes=network,
            files=SandboxFiles(config.local_dir / "files"),
            managers=Grants(local, managers, network.ports_in_use, self.worker.lent),
            engine=engine,
            directory=config.local_dir,
            clock=clock,
            local=local,
        )
        self.measuring = Measuring(
            node=name,
            worker=lambda: self.worker,
            session=lambda: self.session,
            resolver=resolver,
            hooks=balancing_hooks,
            manager=lambda: self.manager,
            dispatcher=lambda: self.role.dispatcher if self.role is not None else None,
            clock=clock,
        )

    @property
    def manager(self) -> Manager | None:
        """The managers' facade, when this node is one and ready to answer."""
        return self.role.manager if self.role is not None else None

    async def run(self) -> None:
        """Until the node is removed from the swarm. Cancelling leaves network and containers as they are."""
        identity = self.session.identity
        async with asyncio.TaskGroup() as tasks:
            serving = asyncio.Event()
            beside = [tasks.create_task(self._act(serving), name="manager")]
            if identity.facts.role == "manager" and not identity.vault.locked:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MANAGER_FIRST):
                        await serving.wait()
            beside += [
                tasks.create_task(self.worker.run(), name="worker"),
                tasks.create_task(self.attached.run(), name="attached containers"),
                tasks.create_task(self._announce(serving), name="announce"),
                tasks.create_task(self._tell_ports(), name="ports of plain containers"),
            ]
            try:
                await tasks.create_task(self._connect(), name="session")
            finally:
                for each in (self._logs, self.tracing, self.doctoring, self._feeds, self.measuring):
                    await each.close()
            for task in beside:
                task.cancel()

    def _assign(self, view: View, revision: int) -> None:
        self.worker.assign(view, revision)
        self.attached.assign(view)

    async def _describe(self) -> NodeDescription:
        return await describe(
            self._engine,
            self.session.identity.facts.vtep,
            self._name,
            self._config.labels,
            self._config.generic,
            self._local.published,
        )

    async def _act(self, serving: asyncio.Event) -> None:
        """Be a manager while this node has the role; `serving` is set when the first time has come."""
        await self.session.identity.vault.opened()
        while True:
            if self.session.identity.facts.role == "manager":
                await self._manage(serving)
            await self.session.role_is("manager")

    async def _manage(self, serving: asyncio.Event) -> None:
        """Until the role is taken away. Raises what stops a manager."""
        self.role = role = self._as_manager()
        managing = asyncio.create_task(role.run(serving), name="managing")
        demoted = asyncio.create_task(self.session.role_is("worker"))
        try:
            await asyncio.wait({managing, demoted}, return_when=asyncio.FIRST_COMPLETED)
            if managing.done():
                managing.result()
        finally:
            for each in (managing, demoted):
                each.cancel()
            await asyncio.gather(managing, demoted, return_exceptions=True)
        self.role = None
        await role.dissolve()

    async def _connect(self) -> None:
        """As `Session.run`, once this node is unlocked; until then it goes on with what it was told before."""
        await self.session.identity.vault.opened()
        await self.session.run()

    async def _announce(self, serving: asyncio.Event) -> None:
        if self.session.identity.facts.role != "manager" and self._known_here:
            self._usable()  # a worker that was here before works on without its managers
        await self.session.ready()
        if self.session.identity.facts.role == "manager" and self.session.state == "ready":
            await serving.wait()
        self._accepted()

    async def _tell_ports(self) -> None:
        """Managers hear at once which ports plain containers have here: tasks in host mode then go elsewhere."""
        changed, told = asyncio.Event(), self._local.published
        unsubscribe = self._local.on_change(changed.set)
        try:
            while True:
                await changed.wait()
                changed.clear()
                if self._local.published != told:
                    told = self._local.published
                    await self.session.tell_changes()
        finally:
            unsubscribe()
