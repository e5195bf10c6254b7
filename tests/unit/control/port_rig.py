"""A manager's cluster port over loopback, with a real store, and agents that join it."""

import asyncio
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import msgspec

from hivemesh.agent.identity import Identity
from hivemesh.agent.join import join
from hivemesh.agent.session import Session
from hivemesh.clock import Clock, SystemClock
from hivemesh.control.dispatcher import Dispatcher
from hivemesh.control.manager import Manager
from hivemesh.control.server import ClusterServer
from hivemesh.model.cluster import Cluster, SwarmSpec
from hivemesh.model.cluster import Dispatcher as DispatcherSpec
from hivemesh.model.ids import ClusterID, NodeID, ServiceID, TaskID, new_id
from hivemesh.model.node import Node, NodeDescription, NodeSpec
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.pki import Authority, make_request, new_token
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables, Transaction
from hivemesh.wire.control import View

LOOPBACK = ip_address("127.0.0.1")


async def eventually(condition: Callable[[], bool], within: float = 5.0) -> None:
    """Until `condition` holds; fails the test after `within` seconds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Agent:
    """A node's end: a session, and what it handed to the worker."""

    session: Session
    assigned: list[tuple[View, int]] = field(default_factory=list)
    acks: bool = True
    run: "asyncio.Task[None] | None" = None

    @property
    def node(self) -> NodeID:
        return self.session.identity.facts.node_id

    def assign(self, view: View, revision: int) -> None:
        self.assigned.append((view, revision))
        if self.acks:
            self.session.ack(revision)

    async def stop(self) -> None:
        if self.run is not None:
            self.run.cancel()
            await asyncio.gather(self.run, return_exceptions=True)
            self.run = None


@dataclass
class Swarm:
    """One manager."""

    directory: Path
    port: int
    tables: Tables
    dispatcher: Dispatcher
    server: ClusterServer
    clock: Clock
    agents: list[Agent] = field(default_factory=list)

    @property
    def manager(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def cluster(self) -> Cluster:
        return self.tables.view.cluster

    async def join(self, name: str) -> Identity:
        return await join(
            [self.manager],
            self.cluster.worker_token,
            data_dir=self.directory / name,
            addr=LOOPBACK,
            vtep=ip_address(f"192.0.2.{zlib.crc32(name.encode()) % 250 + 1}"),
            listen="0.0.0.0:2377",
            hostname=name,
        )

    async def agent(self, name: str, *, acks: bool = True) -> Agent:
        """A node that joined and has its first view."""
        return await self.connect(await self.join(name), acks=acks)

    async def connect(self, identity: Identity, *, acks: bool = True) -> Agent:
        async def describe() -> NodeDescription:
            return NodeDescription(hostname="host", architecture="x86_64")

        holder: list[Agent] = []
        session = Session(
            identity, assign=lambda view, at: holder[0].assign(view, at), describe=describe, clock=SystemClock()
        )
        agent = Agent(session, acks=acks)
        holder.append(agent)
        agent.run = asyncio.create_task(session.run())
        self.agents.append(agent)
        async with asyncio.timeout(5):
            await session.ready()
        return agent

    async def put_task(self, node: NodeID, **fields: object) -> Task:
        """A running task on `node`, unless `fields` say otherwise."""
        task = Task(
            id=TaskID(new_id()),
            service_id=ServiceID("service"),
            service_name="web",
            slot=1,
            spec=TaskSpec(),
            node_id=node,
            status=TaskStatus(state=TaskState.RUNNING),
        )
        changed = msgspec.structs.replace(task, **fields)
        await self.tables.update(lambda tx: tx.put(changed))
        return changed

    async def change(self, task: Task, **fields: object) -> None:
        def edit(tx: Transaction) -> None:
            current = tx.get(Task, task.id)
            assert current is not None
            tx.put(msgspec.structs.replace(current, **fields))

        await self.tables.update(edit)

    def task(self, identifier: str) -> Task:
        found = self.tables.view.get(Task, identifier)
        assert found is not None
        return found

    def node(self, identifier: str) -> Node:
        found = self.tables.view.get(Node, identifier)
        assert found is not None
        return found


@asynccontextmanager
async def open_swarm(
    directory: Path,
    *,
    clock: Clock | None = None,
    heartbeat: float = 5.0,
    port: int = 0,
    name: str = "manager",
    beside: Swarm | None = None,
) -> AsyncIterator[Swarm]:
    """A manager that serves until the block ends; on a directory used before it goes on with what is there.

    `beside` another one it has the same store, and does not lead.
    """
    data = directory / name
    data.mkdir(parents=True, exist_ok=True)
    store = await SqliteStore.open(data) if beside is None else beside.tables.store
    if beside is not None:
        (data / "node.pem").write_bytes((directory / "manager" / "node.pem").read_bytes())
        leader = Node(id=NodeID("m"), spec=NodeSpec(role="manager"), manager_addr=beside.manager)
        await beside.tables.update(lambda tx: tx.put(leader))
    tables = Tables(store)
    await tables.load()
    following = asyncio.create_task(tables.run())
    if not (data / "node.pem").exists():
        now = time.time()
        authority, request, cluster_id = Authority.create(now), make_request(), ClusterID(new_id())
        certificate = authority.sign(request.csr, node_id="m", cluster_id=cluster_id, role="manager", now=now)
        (data / "node.pem").write_text(certificate + request.key)
        await tables.update(
            lambda tx: tx.put(
                Cluster(
                    id=cluster_id,
                    spec=SwarmSpec(dispatcher=DispatcherSpec(heartbeat_period=int(heartbeat * 1e9))),
                    ca_cert=authority.certificate,
                    ca_key=authority.key,
                    worker_token=new_token(authority.certificate),
                    manager_token=new_token(authority.certificate),
                )
            )
        )
    clock = clock or SystemClock()
    port = port or free_port()
    dispatcher = Dispatcher(tables, clock)
    server = ClusterServer(
        Manager(tables, clock, me=NodeID("m" if beside is None else "f"), elected=lambda: NodeID("m")),
        dispatcher if beside is None else None,
        certificate=data / "node.pem",
        listen=f"0.0.0.0:{port}",
        clock=SystemClock(),
    )
    running = [asyncio.create_task(dispatcher.run()), asyncio.create_task(server.run())]
    swarm = Swarm(directory, port, tables, dispatcher, server, clock)
    try:
        await asyncio.wait([*running, asyncio.create_task(server.ready.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert server.ready.is_set(), [task.exception() for task in running if task.done()]
        yield swarm
    finally:
        for agent in swarm.agents:
            await agent.stop()
        for task in (*running, following):
            task.cancel()
        await asyncio.gather(*running, following, return_exceptions=True)
        if beside is None:
            await store.close()
