"""A cluster without a store, agents or time: the passes on a view, with reports and clock turned by hand."""

import itertools
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from hivemesh.control import insight, lookup, networks, services, swarm
from hivemesh.control.grants import Grants
from hivemesh.control.manager import converge
from hivemesh.model.cluster import Cluster
from hivemesh.model.ids import NodeID, ServiceID, TaskID
from hivemesh.model.network import IPAMConfig, Network, NetworkSpec
from hivemesh.model.node import Node, NodeDescription, NodeSpec
from hivemesh.model.service import (
    ContainerSpec,
    EndpointSpec,
    Global,
    NetworkAttachmentConfig,
    Placement,
    PortConfig,
    Replicated,
    ReplicatedJob,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.pki import Authority
from hivemesh.store.tables import Transaction, View
from hivemesh.wire.engine import SwarmInit
from hivemesh.wire.insight import Insight

R = TypeVar("R")
SECOND = 1_000_000_000
FAKE_CA = Authority("no certificate", "no key")


def spec(
    name: str = "web",
    replicas: int = 1,
    *,
    image: str = "whoami",
    ports: Iterable[PortConfig] = (),
    networks: Iterable[str] = (),
    constraints: Iterable[str] = (),
    max_replicas: int = 0,
    restart: RestartPolicy = RestartPolicy(),  # noqa: B008  (frozen)
    update: UpdateConfig | None = None,
    mode: str = "vip",
) -> ServiceSpec:
    return ServiceSpec(
        name=name,
        mode=ServiceMode(replicated=Replicated(replicas=replicas)),
        task_template=TaskSpec(
            container_spec=ContainerSpec(image=image),
            networks=tuple(NetworkAttachmentConfig(target=network) for network in networks),
            placement=Placement(constraints=tuple(constraints), max_replicas=max_replicas),
            restart_policy=restart,
        ),
        endpoint_spec=EndpointSpec(mode="dnsrr" if mode == "dnsrr" else "vip", ports=tuple(ports)),
        update_config=update,
    )


def job(at_once: int = 1, total: int | None = None, **changes: object) -> ServiceSpec:
    """A replicated job."""
    mode = ServiceMode(replicated_job=ReplicatedJob(max_concurrent=at_once, total_completions=total))
    return msgspec.structs.replace(spec("job"), **{"mode": mode, **changes})


def everywhere(name: str = "web", **changes: object) -> ServiceSpec:
    """A global service."""
    return msgspec.structs.replace(spec(name), mode=ServiceMode(global_=Global()), **changes)


def publish(port: int, target: int = 80, *, protocol: str = "tcp", mode: str = "ingress") -> PortConfig:
    return PortConfig(
        protocol="udp" if protocol == "udp" else "tcp",
        target_port=target,
        published_port=port,
        publish_mode="host" if mode == "host" else "ingress",
    )


class World:
    """A swarm of `nodes` ready nodes `n1`…; every change is followed by the passes, as the manager does."""

    def __init__(self, nodes: int = 3, *, pools: tuple[str, ...] = (), subnet_size: int = 0) -> None:
        self.view = View()
        self.now = 1_000_000.0
        self.wake: float | None = None
        self._ids = itertools.count(1)
        self._revisions = itertools.count(1)
        self.change(lambda tx: [tx.put(value) for value in self._initial(pools, subnet_size)])
        self.set_node("n1", state="ready")
        for number in range(2, nodes + 1):
            self.add_node(number)

    def _initial(self, pools: tuple[str, ...], subnet_size: int) -> tuple[Cluster, Node, Network]:
        return swarm.initial_objects(
            SwarmInit(default_addr_pool=pools, subnet_size=subnet_size),
            authority=FAKE_CA,
            node_id=NodeID(self.new_id()),
            addr=ip_address("198.51.100.11"),
            vtep=ip_address("198.51.100.11"),
            manager_addr="198.51.100.11:2377",
            worker_token="worker",
            manager_token="manager",
            hostname="n1",
            now=self.now,
            new_id=self.new_id,
        )

    def new_id(self) -> str:
        return f"{next(self._ids):025d}"

    def change(self, change: Callable[[Transaction], R]) -> R:
        tx = Transaction(self.view)
        result = change(tx)
        self.wake = converge(tx, self.now, self.new_id)
        self.view.adopt(tx, next(self._revisions))
        return result

    def settle(self) -> None:
        self.change(lambda tx: None)

    def at_rest(self) -> bool:
        tx = Transaction(self.view)
        converge(tx, self.now, self.new_id)
        return not list(tx.staged())

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    # --- nodes

    def add_node(self, number: int, **labels: str) -> Node:
        node = Node(
            id=NodeID(self.new_id()),
            spec=NodeSpec(labels=labels),
            created=self.now,
            state="ready",
            vtep=ip_address(f"198.51.100.{10 + number}"),
            addr=f"198.51.100.{10 + number}",
            description=NodeDescription(hostname=f"n{number}", architecture="x86_64"),
        )
        self.change(lambda tx: tx.put(node))
        return node

    def node(self, name: str) -> Node:
        return lookup.node(self.view, name)

    def set_node(self, name: str, **changes: object) -> None:
        node = self.node(name)
        if changes.get("state") == "down":
            node = node.gone_down("heartbeat failure", self.now)
        elif "state" in changes:
            changes["lost_at"] = 0.0
        self.change(lambda tx: tx.put(msgspec.structs.replace(node, **changes)))

    def set_spec(self, name: str, **changes: object) -> None:
        self.set_node(name, spec=msgspec.structs.replace(self.node(name).spec, **changes))

    # --- services and networks

    def create(self, wanted: ServiceSpec) -> Service:
        made = self.change(lambda tx: services.create(tx, wanted, self.now, self.new_id()))
        return self.service(made.id)

    def update(self, name: str, wanted: ServiceSpec) -> Service:
        version = self.service(name).version
        self.change(lambda tx: services.update(tx, name, version, wanted, self.now))
        return self.service(name)

    def remove(self, name: str) -> None:
        self.change(lambda tx: services.remove(tx, name))

    def service(self, name: str) -> Service:
        return lookup.service(self.view, name)

    def create_network(
        self,
        name: str,
        *subnets: str,
        ipv6: bool = False,
        ingress: bool = False,
        ip_range: str = "",
        aside: dict[str, str] | None = None,
    ) -> Network:
        ipam = tuple(
            IPAMConfig(subnet=subnet, ip_range=ip_range, auxiliary_addresses=aside or {}) for subnet in subnets
        )
        wanted = NetworkSpec(name=name, ipam=ipam, ipv6=ipv6, ingress=ingress)
        self.change(lambda tx: networks.create(tx, wanted, self.now, self.new_id()))
        return self.network(name)

    def network(self, name: str) -> Network:
        return lookup.network(self.view, name)

    def insights(self) -> tuple[Insight, ...]:
        return insight.overview(self.view).networks

    def insight(self, name: str) -> Insight:
        return insight.detail(self.view, self.network(name))

    # --- tasks

    def attach(self, name: str, network: str, node: str) -> Task:
        """A plain container on a node joins a network."""
        joined = self.network(network)

        def place(tx: Transaction) -> Task:
            return tx.put(
                Task(
                    id=TaskID(self.new_id()),
                    service_id=ServiceID(""),
                    service_name="",
                    slot=0,
                    spec=TaskSpec(networks=(NetworkAttachmentConfig(target=joined.id),)),
                    created=self.now,
                    node_id=self.node(node).id,
                    status=TaskStatus(timestamp=self.now, state=TaskState.RUNNING),
                    attachments=(Grants(tx, self.new_id).attachment(joined),),
                    container=name,
                )
            )

        return self.change(place)

    def tasks(self, name: str | None = None) -> list[Task]:
        found = self.view.tasks_of(self.service(name).id) if name else list(self.view.all(Task))
        return sorted(found, key=lambda task: (task.slot, task.created, task.id))

    def wanted(self, name: str) -> list[Task]:
        return [task for task in self.tasks(name) if task.wanted]

    def task(self, task: Task) -> Task:
        return lookup.task(self.view, task.id)

    def report(self, task: Task, state: TaskState, **fields: object) -> None:
        status = TaskStatus(timestamp=self.now, state=state, **fields)  # type: ignore[arg-type]
        self.change(lambda tx: tx.put(self.task(task).with_report(status)))

    def agents(self) -> None:
        """Every agent on a living node does at once what is wanted of its tasks."""

        def act(tx: Transaction) -> None:
            for task in list(tx.all(Task)):
                node = tx.get(Node, task.node_id) if task.node_id else None
                if node is None or node.state == "down" or task.status.state.dead:
                    continue
                state = {TaskState.READY: TaskState.READY, TaskState.RUNNING: TaskState.RUNNING}.get(
                    task.desired, TaskState.SHUTDOWN
                )
                if task.status.state < state:
                    tx.put(task.with_report(TaskStatus(timestamp=self.now, state=state)))

        for _ in range(3):
            self.change(act)
