"""The agent's worker: what the managers assigned to this node, made true and kept true.

    view -> network (host, overlays, ingress sandbox: within milliseconds) -> acknowledged
         -> executors (one per task, each at its own pace)                 -> reported

What stays true
- The last view is kept on disk. A daemon that starts without a manager keeps and repairs the network of that view and
  adopts its containers; it begins nothing new and removes nothing until a manager has spoken.
- No engine call ever holds up the network.
- Secrets and configs are never on that disk: see `secrets.py`.
"""

import asyncio
import logging
import shutil
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hivemesh.agent.executor import Executor
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.leases import Leases
from hivemesh.agent.lent import LentNetworks
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.names import NodeNames, Resolver
from hivemesh.agent.namespaces import Kernel
from hivemesh.agent.network import NodeNetwork
from hivemesh.agent.private import write_private
from hivemesh.agent.secrets import TaskSecrets, is_confidential
from hivemesh.clock import Clock
from hivemesh.cnm.node import ViewParts, parts_of
from hivemesh.config import RUN_DIR, Counts
from hivemesh.dataplane.balancer.engines import BASE
from hivemesh.dataplane.balancer.engines import Engine as Balancer
from hivemesh.dataplane.differing import Difference
from hivemesh.engine.api import TASK_LABEL, ContainerInfo, Engine
from hivemesh.kernel.api import NamespacePlan
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError
from hivemesh.model.ids import TaskID
from hivemesh.model.service import PortConfig
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.wire import codec
from hivemesh.wire.control import AnyItem, TaskItem, View, key_of

log = logging.getLogger("hivemesh.worker")

SAVE_PERIOD = 0.1
"""Seconds at least between two writes of the view. A daemon that is killed begins with what was written last, and
takes nothing away by it before a manager could speak: see `NodeNetwork.want`."""
RETRY_FIRST, RETRY_LAST = 0.5, 30.0
DISSOLVE_GRACE = 10.0
END_WAIT = 5.0
"""Seconds at most that the end of a task waits for this node's own rules; as long as managers wait for other nodes."""


class AgentPort(Protocol):
    """The way to the managers: `agent.session.Session`."""

    def report(self, task: TaskID, status: TaskStatus) -> None: ...

    def ack(self, revision: int, pending: int = 0) -> None: ...


class _Saved(msgspec.Struct, frozen=True):
    revision: int
    items: tuple[AnyItem, ...]


class Worker:
    """One node's. `assign` takes views; `run` does the work until cancelled."""

    def __init__(
        self,
        *,
        port: AgentPort,
        engine: Engine,
        applier: Kernel,
        resolver: Resolver,
        data_dir: Path,
        vtep: Address,
        clock: Clock,
        balancer: Balancer = BASE,
        hooks: SocketHooks | None = None,
        counts: Counts = "bytes",
        run_dir: Path = RUN_DIR,
        local: LocalNetworks | None = None,
    ) -> None:
        self._port = port
        self._engine = engine
        self._clock = clock
        self._directory = data_dir / "agent"
        self._files = SandboxFiles(self._directory / "tasks")
        self._secrets = TaskSecrets(run_dir / "secrets")
        local = local or LocalNetworks(data_dir / "local", clock)
        self.lent = LentNetworks(local, self._directory / "lent.json")
        self._network = NodeNetwork(
            applier,
            NodeNames(resolver, self._files, self._applied),
            vtep=vtep,
            balancer=balancer,
            hooks=hooks,
            counts=counts,
            leases=Leases(self._directory / "leases.json"),
            clock=clock,
            lost=self._lost,
            local=local,
            lent=self.lent,
        )
        self._view: View = {}
        self._parts: ViewParts | None = None
        self._revision = 0
        self._assigned = False  # a manager has spoken, since this process began
        self._settled = 0  # the newest revision that kernel and names follow
        self._waits_since: float | None = None  # for kernel and names to follow, by the loop's clock
        self.lag = 0.0
        """Seconds that kernel and names took to follow the latest view they follow."""
        self._ending: dict[TaskID, int] = {}  # since which revision a task of ours may end
        self._executors: dict[TaskID, Executor] = {}
        self._containers: dict[TaskID, ContainerInfo] | None = None  # found at start; None: not known yet
        self._group: asyncio.TaskGroup | None = None
        self._save_due = asyncio.Event()

    @property
    def drift(self) -> dict[str, int]:
        """Differences somebody else made and we repaired, by namespace ("host" is the machine's own)."""
        return dict(self._network.drift)

    @property
    def behind(self) -> float:
        """Seconds since a view came that kernel and names do not follow yet; 0: they follow."""
        return 0.0 if self._waits_since is None else asyncio.get_running_loop().time() - self._waits_since

    @property
    def network(self) -> NodeNetwork:
        """The network of this node, for those beside tasks who need sandboxes."""
        return self._network

    def assign(self, view: View, revision: int) -> None:
        """Take over a whole view. Returns at once."""
        first, self._assigned = not self._assigned, True
        if self._waits_since is None:
            self._waits_since = asyncio.get_running_loop().time()
        self._view, self._revision, self._parts = view, revision, parts_of(view)
        here = self._parts.tasks.keys() | self._executors.keys()
        self._ending = {task: since for task, since in self._ending.items() if task in here}
        self._network.want(self._parts, revision, sweep=first)
        self._secrets.learn(view)
        if first:
            self._files.keep(self._parts.tasks.keys())
            self.lent.keep({task for task, item in self._parts.tasks.items() if not item.task.status.state.dead})
            self._secrets.keep({task for task, item in self._parts.tasks.items() if not item.task.status.state.dead})
        self._save_due.set()
        self._update_tasks()

    async def run(self) -> None:
        """Cancelling leaves network and containers as they are, for the next one to adopt."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._assigned:
            self._load()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._group = tasks
                tasks.create_task(self._network.run(), name="network")
                tasks.create_task(self._adopt(), name="adopt containers")
                tasks.create_task(self._save(), name="save the view")
        finally:
            self._group = None

    def container_of(self, task: TaskID) -> str:
        """The engine's id of a task's container, once it has one."""
        item = self._parts.tasks.get(task) if self._parts is not None else None
        return item.task.status.container_id if item is not None else ""

    @property
    def parts(self) -> ViewParts | None:
        """The view by kind of item; None until there is one."""
        return self._parts

    @property
    def plans(self) -> dict[str, NamespacePlan]:
        """What the kernel was last made to hold, by namespace."""
        return self._network.plans

    @property
    def revisions(self) -> tuple[int, int]:
        """The newest view, and the one that kernel and names follow."""
        return self._revision, self._settled

    async def equal_to_plan(self) -> list[Difference]:
        """Every difference between the kernel and what it should hold; [] means equal."""
        return await self._network.differences()

    async def dissolve(self) -> None:
        """Leave the swarm: stop and remove our containers and everything in the kernel. `run` has ended."""
        try:
            containers = await self._engine.list()
        except HivemeshError as error:
            log.warning("cannot stop the containers of this node: %s", error)
            containers = []
        outcomes = await asyncio.gather(*(self._end(c.id) for c in containers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                log.warning("cannot stop a container: %s", outcome)
        self.lent.dissolve()
        await self._network.dissolve()
        try:
            await asyncio.to_thread(self._secrets.dissolve)
        except OSError as error:
            log.warning("what tasks had in memory remains: %s", error)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _end(self, container: str) -> None:
        await self._engine.stop(container, "", DISSOLVE_GRACE)
        await self._engine.remove(container)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _update_tasks(self) -> None:
        if self._group is None or self._parts is None:
            return  # `_adopt` calls again
        for identifier, item in self._parts.tasks.items():
            if item.task.attached:
                continue  # a plain container's, which nobody executes: see `attached.py`
            executor = self._executors.get(identifier)
            if (item.released or item.task.status.state.dead) and not self._leads_nobody_to(identifier):
                continue
            if executor is not None:
                executor.update(item)
            elif self._containers is None:
                # The engine does not answer (yet). What it was never asked to run can go ahead, and fail in its words
                if self._assigned and item.task.status.state <= TaskState.ASSIGNED:
                    self._begin(item, None)
            elif self._assigned or identifier in self._containers:
                self._begin(item, self._containers.pop(identifier, None))
        if self._assigned:
            for identifier, executor in self._executors.items():
                if identifier not in self._parts.tasks and self._leads_nobody_to(identifier):
                    executor.vanish()
            self._remove_strangers()

    def _leads_nobody_to(self, task: TaskID) -> bool:
        """Whether what the managers gave up may end: this node's own rules must have heard of it, too.

        Managers wait for the nodes they can reach. One that was away hears of the end of its tasks, and of those that
        took their places, in one view.
        """
        known = self._ending.get(task)
        if known is None:
            known = self._ending[task] = self._revision
            asyncio.get_running_loop().call_later(END_WAIT, self._end_anyway, task)
        return known <= self._settled

    def _end_anyway(self, task: TaskID) -> None:
        if self._ending.get(task, 0) > self._settled:
            self._ending[task] = 0
            self._update_tasks()

    def _remove_strangers(self) -> None:
        """Containers that were here when we came and belong to no task."""
        if not self._containers or self._group is None:
            return
        strangers, self._containers = self._containers, {}
        for identifier, container in strangers.items():
            if identifier not in self._executors:
                log.info("removing the container %s, whose task is gone", container.name)
                self._spawn(self._remove(container), f"remove {container.name}")

    def _begin(self, item: TaskItem, found: ContainerInfo | None) -> None:
        executor = Executor(
            item,
            engine=self._engine,
            sandboxes=_Sandboxes(self._network, self._files, self._secrets, self._port),
            clock=self._clock,
            hostname=socket.gethostname(),
            found=found,
        )
        self._executors[item.task.id] = executor
        self._spawn(self._execute(executor), f"task {item.task.id}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        assert self._group is not None
        try:
            self._group.create_task(work, name=name)
        except RuntimeError:  # all of it is ending: that is for the next daemon
            work.close()

    async def _execute(self, executor: Executor) -> None:
        try:
            await executor.run()
        except Exception:
            log.exception("the executor of task %s failed", executor.task.name)
        finally:
            self._executors.pop(executor.task.id, None)
            self._ending.pop(executor.task.id, None)

    async def _adopt(self) -> None:
        """Learn which containers of ours exist, as soon as the engine says."""
        delay = RETRY_FIRST
        while self._containers is None:
            try:
                found = await self._engine.list()
                self._containers = {TaskID(c.labels[TASK_LABEL]): c for c in found}
            except HivemeshError as error:
                log.warning("the engine does not say which containers it has, asking again in %g s: %s", delay, error)
                await self._clock.sleep(delay)
                delay = min(2 * delay, RETRY_LAST)
        self._update_tasks()

    async def _remove(self, container: ContainerInfo) -> None:
        try:
            await self._end(container.id)
        except (HivemeshError, OSError) as error:
            log.warning("cannot remove the container %s: %s", container.name, error)

    # --- what the network says --------------------------------------------------------------------------------------

    def _applied(self, revision: int, pending: int) -> None:
        held = any(since > self._settled for since in self._ending.values())
        self._settled = revision
        if revision >= self._revision and not pending:
            self.lag, self._waits_since = self.behind or self.lag, None
        if held:
            self._update_tasks()
        if self._assigned:
            self._port.ack(revision, pending)

    def _lost(self, task: TaskID) -> None:
        executor = self._executors.get(task)
        if executor is not None:
            executor.lose_sandbox("somebody removed the task's network namespace")

    # --- the view on disk -------------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            saved = codec.unpack((self._directory / "view.msgpack").read_bytes(), _Saved)
        except (OSError, msgspec.MsgspecError):
            return  # a fresh node, or a torn file: wait for a manager
        self._view = {key_of(item): item for item in saved.items}
        self._revision, self._parts = saved.revision, parts_of(self._view)
        self._network.want(self._parts, saved.revision, remembered=True)

    async def _save(self) -> None:
        while True:
            await self._save_due.wait()
            self._save_due.clear()
            items = tuple(item for item in self._view.values() if not is_confidential(item))
            saved = _Saved(self._revision, items)
            try:
                await asyncio.to_thread(_write, self._directory / "view.msgpack", saved)
            except OSError as error:
                log.warning("cannot save the node's view: %s", error)
            await asyncio.sleep(SAVE_PERIOD)


class _Sandboxes:
    """What an executor needs of the rest of the node."""

    def __init__(self, network: NodeNetwork, files: SandboxFiles, secrets: TaskSecrets, port: AgentPort) -> None:
        self._network = network
        self._files = files
        self._secrets = secrets
        self._port = port

    async def attach(self, task: Task) -> str:
        return await self._network.attach(task)

    async def detach(self, task: TaskID, *, unplug: bool = False) -> None:
        await self._network.detach(task, unplug=unplug)

    def files(self, task: Task, hostname: str) -> dict[str, str]:
        return self._network.files(task, hostname)

    async def secrets(self, task: Task, hostname: str) -> dict[str, str]:
        return await self._secrets.provide(task, hostname)

    def credential(self, task: Task) -> str:
        return self._secrets.credential(task.service_id)

    def forget_secrets(self, task: TaskID) -> None:
        self._secrets.remove(task)

    def forget(self, task: TaskID) -> None:
        self._files.remove(task)

    def host_ports(self, task: Task) -> tuple[PortConfig, ...]:
        return self._network.host_ports(task.id)

    def report(self, task: TaskID, status: TaskStatus) -> None:
        self._port.report(task, status)


def _write(path: Path, saved: _Saved) -> None:
    write_private(path, codec.pack(saved))
