"""The API on a unix socket, with real managers over a real store; only the machine around them is made up."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec

from hivemesh import pki
from hivemesh.agent.attached import AttachedContainers
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.vault import NOT_LOCKED, Vault
from hivemesh.api.local import LocalState, RemoteManager
from hivemesh.api.server import ApiServer
from hivemesh.client import Client
from hivemesh.clock import Clock, SystemClock
from hivemesh.control import swarm
from hivemesh.control.manager import Manager
from hivemesh.engine.api import EngineInfo
from hivemesh.model.errors import Conflict, NotFound, Unavailable
from hivemesh.model.generic import GenericResource
from hivemesh.model.ids import NodeID, TaskID, new_id
from hivemesh.model.node import Trust
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.registry.client import Image, Registries
from hivemesh.registry.reference import Reference
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables, Transaction
from hivemesh.web.compose import compose
from hivemesh.wire.doctor import Asked, Diagnosis, Finding
from hivemesh.wire.engine import SwarmInit, SwarmJoin
from hivemesh.wire.feed import Counts, Entry, Flow, What
from hivemesh.wire.insight import Insight, Insights
from hivemesh.wire.registryauth import RegistryAuth
from hivemesh.wire.topology import Picture
from hivemesh.wire.trace import Question, Trace

PATIENCE = 20.0


class NoRegistries(Registries):
    """None can be reached."""

    async def describe(self, reference: Reference, auth: RegistryAuth) -> Image:
        raise Unavailable(f"cannot ask the registry {reference.domain} about {reference}: there is no network")

    async def login(self, domain: str, auth: RegistryAuth) -> None:
        raise Unavailable(f"cannot ask the registry {domain} who {auth.username!r} is: there is no network")


@dataclass
class Machine:
    """A node whose tasks start and stop at once, and whose engine is whatever socket a test gives it."""

    data_dir: Path
    name: str = "n1"
    state: LocalState = "inactive"
    error: str = ""
    node_id: NodeID | None = None
    node_addr: str = ""
    remote_managers: tuple[RemoteManager, ...] = ()
    manager: Manager | None = None
    attached: AttachedContainers | None = None
    is_manager: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    socket_balancing: str = "on"
    generic: tuple[GenericResource, ...] = ()
    clock: Clock = field(default_factory=SystemClock)
    engine: Path | None = None
    joined: SwarmJoin | None = None
    running: list[asyncio.Task[None]] = field(default_factory=list)
    store: SqliteStore | None = None
    told: tuple[Insight, ...] = ()  # what a worker hears of networks
    findings: tuple[Finding, ...] = ()  # what the doctor finds
    traffic: tuple[Entry, ...] = ()  # what its feeds tell, then they end
    registries: Registries = field(default_factory=lambda: NoRegistries())
    vault: Vault | None = None  # of a manager that starts locked
    local_networks: LocalNetworks = field(init=False)

    def __post_init__(self) -> None:
        self.local_networks = LocalNetworks(self.data_dir / "local", self.clock)

    async def init(self, request: SwarmInit) -> NodeID:
        authority = swarm.first_root(request.spec.ca_config, self.clock.now())
        self.store = await SqliteStore.open(self.data_dir)
        tables = Tables(self.store)
        await tables.load()
        node_id = NodeID(new_id())
        address = ip_address("198.51.100.11")
        cluster, node, ingress = swarm.initial_objects(
            request,
            authority=authority,
            node_id=node_id,
            addr=address,
            vtep=address,
            manager_addr=f"{address}:2377",
            worker_token=pki.new_token(authority.certificate),
            manager_token=pki.new_token(authority.certificate),
            hostname=self.name,
            now=self.clock.now(),
        )
        trust = Trust(roots=(pki.ca_digest(cluster.ca_cert),), issuer=pki.key_id(cluster.ca_cert))
        description = msgspec.structs.replace(node.description, trust=trust)
        node = msgspec.structs.replace(node, state="ready", description=description)
        await swarm.found(tables, (cluster, node, ingress))
        self.manager = Manager(tables, self.clock, me=node_id)
        self.node_id, self.node_addr, self.state, self.is_manager = node_id, "198.51.100.11", "active", True
        self.remote_managers = (RemoteManager(addr="198.51.100.11:2377", node_id=node_id),)
        for step in (tables.run(), self.manager.run(), self._act(tables)):
            self.running.append(asyncio.create_task(step))
        return node_id

    async def restore(self, snapshot: bytes, request: SwarmInit) -> NodeID:
        self.restored = snapshot
        return await self.init(request)

    async def join(self, request: SwarmJoin) -> None:
        self.joined, self.state, self.node_id = request, "active", NodeID(new_id())

    async def leave(self, *, force: bool) -> None:
        await self.stop()
        self.state, self.manager, self.node_id, self.is_manager = "inactive", None, None, False

    async def unlock(self, key: str) -> None:
        if self.vault is None:
            raise Conflict(NOT_LOCKED)
        self.vault.unlock(key)
        self.state = "active"

    async def stop(self) -> None:
        for step in self.running:
            step.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        self.running.clear()
        if self.store is not None:
            await self.store.close()
            self.store = None

    async def engine_socket(self) -> Path | None:
        return self.engine

    async def engine_info(self) -> EngineInfo:
        return EngineInfo(name="podman", version="4.3.1")

    async def networks(self) -> Insights:
        return self.manager.insights() if self.manager else Insights(networks=self.told)

    async def network(self, ref: str) -> Insight:
        if self.manager:
            return self.manager.insight(ref)
        found = next((about for about in self.told if about.network.spec.name == ref), None)
        if found is None:
            raise NotFound(f"network {ref} not found")
        return found

    async def drift(self) -> list[str]:
        return []

    async def doctor(self, asked: Asked) -> Diagnosis:
        return Diagnosis(node=self.name, checks=("ports",), findings=self.findings, fixed=("f",) if asked.fix else ())

    async def feed(self, what: What, node: str) -> AsyncGenerator[Entry, None]:
        for entry in self.traffic:
            if not isinstance(entry, Flow if what == "counts" else Counts) and node in ("", entry.node):
                yield entry

    async def topology(self, *, detailed: bool | None) -> Picture:
        if self.manager is None:
            raise Unavailable("this node is no manager that answers")
        return compose(self.manager.tables.view, {}, leader=self.node_id, detailed=detailed)

    async def trace(self, question: Question) -> Trace:
        raise Unavailable("this machine has no kernel of its own")

    async def _act(self, tables: Tables) -> None:
        """The agents of the cluster: what should run runs, what should not is gone. Images called `bad` never start."""
        revision = 0
        while True:
            await tables.update(self._report)
            revision = await tables.changed(max(revision, tables.view.revision))

    def _report(self, tx: Transaction) -> None:
        for task in list(tx.all(Task)):
            state = _next(task)
            if state is not None and task.node_id:
                bad = state == TaskState.REJECTED
                status = TaskStatus(
                    timestamp=self.clock.now(),
                    state=state,
                    message="preparing" if bad else "started",
                    err=f"no such image: {task.spec.container_spec.image}" if bad else "",
                    container_id="" if bad else TaskID(task.id).ljust(64, "0"),
                )
                tx.put(task.with_report(status))


def _next(task: Task) -> TaskState | None:
    if task.status.state.dead or not task.node_id:
        return None
    if task.desired > TaskState.RUNNING:
        return TaskState.SHUTDOWN
    if task.spec.container_spec.image.startswith("bad"):
        return TaskState.REJECTED
    return TaskState.RUNNING if task.status.state < TaskState.RUNNING <= task.desired else None


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@dataclass
class Served:
    """An API that runs, and the ways to it."""

    machine: Machine
    socket: Path

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def client(self) -> Client:
        return Client(self.host)

    @property
    def environment(self) -> dict[str, str]:
        """Of clients' commands."""
        path = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"
        return {"DOCKER_HOST": self.host, "HIVEMESH_HOST": self.host, "PATH": path}

    async def run(self, *command: str, stdin: bytes | None = None) -> Result:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())

    async def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        """What the docker CLI prints; it must succeed."""
        result = await self.run("docker", *arguments, stdin=stdin)
        assert result.code == 0, result
        return result.out

    async def docker_error(self, *arguments: str) -> str:
        """What the docker CLI complains; it must fail."""
        result = await self.run("docker", *arguments)
        assert result.code != 0, result
        return result.err

    async def http(self, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[int, dict[str, str], Any]:
        """One raw request: status, headers in lower case, decoded body."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            head = [
                f"{method} {path} HTTP/1.1",
                "Host: d",
                "Connection: close",
                f"Content-Length: {len(body)}",
                *headers,
            ]
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            answer = (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()
        top, _, rest = answer.partition("\r\n\r\n")
        first, *lines = top.split("\r\n")
        fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
        return int(first.split()[1]), fields, json.loads(rest) if rest[:1] in ("{", "[", '"') else rest


@asynccontextmanager
async def serving(machine: Machine, socket: Path) -> AsyncIterator[Served]:
    ready = asyncio.Event()
    server = asyncio.create_task(ApiServer(machine, socket).run(ready))
    try:
        await asyncio.wait([server, asyncio.ensure_future(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
        if server.done():
            server.result()
        yield Served(machine, socket)
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
        await machine.stop()


@asynccontextmanager
async def outside_api() -> AsyncIterator[Served]:
    """The API of a machine that is in no swarm, in a directory with a short name: a socket's path has 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="hm-"))
    try:
        async with serving(Machine(directory / "data"), directory / "docker.sock") as served:
            yield served
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def manager_api() -> AsyncIterator[Served]:
    """The API of the only manager of a swarm."""
    async with outside_api() as served:
        await served.client.post("/swarm/init", {"ListenAddr": "0.0.0.0:2377"})
        yield served


@asynccontextmanager
async def worker_api() -> AsyncIterator[Served]:
    """The API of a worker."""
    async with outside_api() as served:
        await served.client.post("/swarm/join", {"RemoteAddrs": ["198.51.100.11:2377"], "JoinToken": "SWMTKN-1-a-b"})
        yield served
