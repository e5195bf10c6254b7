"""Which namespaces this node should have, and what is in each: the node's view turned into plans. Pure.

Plans are remembered together with what they were made of. A view that changes one thing makes one or two plans anew;
all others are the very same objects as before, which is how the caller knows that there is nothing to do for them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hivemesh.dataplane.balancer.api import Part, Virtual, virtual
from hivemesh.dataplane.plan.balancing import vip_part
from hivemesh.dataplane.plan.bridge import PLAIN_HOST, ContainerPort, Locals, asked_at, ports_of, way_out, with_local
from hivemesh.dataplane.plan.facts import GatewayLease, HostFacts, HostPort
from hivemesh.dataplane.plan.host import plan_host
from hivemesh.dataplane.plan.ingress import plan_ingress
from hivemesh.dataplane.plan.names import INGRESS_SANDBOX, overlay_namespace, sandbox_namespace
from hivemesh.dataplane.plan.overlay import plan_overlay
from hivemesh.dataplane.plan.sandbox import plan_sandbox
from hivemesh.kernel.api import HOST, NamespacePlan
from hivemesh.model.addr import Address
from hivemesh.model.cluster import DEFAULT_DATA_PATH_PORT
from hivemesh.model.ids import NetworkID, ServiceID, TaskID
from hivemesh.model.local import LocalNetwork
from hivemesh.model.service import PortConfig
from hivemesh.model.task import Task
from hivemesh.wire.control import (
    EndpointItem,
    LocalNetworkItem,
    NetworkItem,
    NodeItem,
    PeerItem,
    PublishItem,
    ServiceItem,
    TaskItem,
    View,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A task's sandbox on this node, with everything it was granted."""

    task: Task
    networks: Mapping[NetworkID, NetworkItem]
    lease: GatewayLease | None
    ports: tuple[PortConfig, ...] = ()  # published in host mode, with real numbers
    local: Locals = field(default_factory=dict)  # the networks of this node it is on


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewParts:
    """A view by kind of item."""

    vteps: tuple[Address, ...]
    networks: Mapping[NetworkID, NetworkItem]
    peers: Mapping[NetworkID, tuple[PeerItem, ...]]
    publishes: tuple[PublishItem, ...]
    services: Mapping[NetworkID, tuple[ServiceItem, ...]]
    endpoints: Mapping[NetworkID, tuple[EndpointItem, ...]]
    tasks: Mapping[TaskID, TaskItem]
    local: Mapping[NetworkID, LocalNetworkItem] = field(default_factory=dict)  # to be made here


def parts_of(view: View) -> ViewParts:
    vteps: list[Address] = []
    networks: dict[NetworkID, NetworkItem] = {}
    peers: dict[NetworkID, list[PeerItem]] = {}
    publishes: list[PublishItem] = []
    services: dict[NetworkID, list[ServiceItem]] = {}
    endpoints: dict[NetworkID, list[EndpointItem]] = {}
    tasks: dict[TaskID, TaskItem] = {}
    local: dict[NetworkID, LocalNetworkItem] = {}
    for item in view.values():
        match item:
            case PeerItem():
                peers.setdefault(item.network, []).append(item)
            case PublishItem():
                publishes.append(item)
            case ServiceItem():
                services.setdefault(item.network, []).append(item)
            case EndpointItem():
                endpoints.setdefault(item.network, []).append(item)
            case TaskItem():
                tasks[item.task.id] = item
            case NodeItem():
                vteps.append(item.vtep)
            case NetworkItem():
                networks[item.id] = item
            case LocalNetworkItem():
                local[item.id] = item
    return ViewParts(
        vteps=tuple(vteps),
        networks=networks,
        peers={network: tuple(found) for network, found in peers.items()},
        publishes=tuple(publishes),
        services={network: tuple(found) for network, found in services.items()},
        endpoints={network: tuple(found) for network, found in endpoints.items()},
        tasks=tasks,
        local=local,
    )


def wants_gateway(task: Task, networks: Iterable[NetworkItem], local: Iterable[LocalNetwork] = ()) -> bool:
    """A sandbox has a way out of the node unless all its networks are internal, or the user took it off all of them.

    For networks of this node, see `leads_out`; a task that is on such ones alone stays in when all are internal.
    """
    found = tuple(networks)
    if found:
        return not all(network.internal for network in found)
    here = tuple(local)
    return not task.attached and not (here and all(network.internal for network in here))


def leads_out(task: Task, networks: Iterable[NetworkItem], local: Locals) -> bool:
    """Whether the sandbox has any way out."""
    return wants_gateway(task, networks, local.values()) or any(
        way_out(task, local, version) is not None for version in (4, 6)
    )


Services = Mapping[NetworkID, tuple[ServiceItem, ...]]


class Planner:
    """Makes plans, and keeps those whose inputs did not change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[object, ...], NamespacePlan]] = {}
        self._vips: dict[frozenset[NetworkID], tuple[tuple[object, ...], Part]] = {}
        self._described: dict[tuple[NetworkID, ServiceID], tuple[ServiceItem, tuple[Virtual, ...]]] = {}

    def forwarding(
        self, view: ViewParts, sandboxes: Sequence[Sandbox], facts: HostFacts, local: tuple[LocalNetwork, ...] = ()
    ) -> list[NamespacePlan]:
        """The host, the overlays and `ingress_sbox`, in the order in which they should be made right.

        A network that a sandbox is still attached to stays, whatever the view says. `local` are those of this node.
        """
        networks = {n.id: n for sandbox in sandboxes for n in sandbox.networks.values()} | dict(view.networks)
        ingress = next((n for n in view.networks.values() if n.ingress and n.own), None)
        port = next((n.port for n in networks.values()), DEFAULT_DATA_PATH_PORT)
        host_ports = tuple(port for sandbox in sandboxes for port in _host_ports(sandbox))
        published = tuple(port for sandbox in sandboxes for port in _published(sandbox))

        def host() -> NamespacePlan:
            swarm = plan_host(facts, view.publishes, host_ports, view.vteps, port) if facts.in_swarm else PLAIN_HOST
            return with_local(swarm, facts, local, published)

        plans = [self._plan(HOST, (facts, view.publishes, host_ports, view.vteps, port, local, published), host)]
        for network in sorted(networks.values(), key=lambda n: (not n.ingress, n.id)):
            plans.append(self._overlay(network, facts, view.peers.get(network.id, ())))
        if ingress is not None:
            plans.append(
                self._plan(
                    INGRESS_SANDBOX,
                    (ingress, facts, view.publishes),
                    lambda: plan_ingress(ingress, facts, view.publishes),
                )
            )
        return plans

    def sandbox(self, sandbox: Sandbox, facts: HostFacts, services: Services) -> NamespacePlan:
        """`services` are the view's; those of the sandbox's networks are balanced in it."""
        task = sandbox.task
        vips = self._vips_on(sandbox.networks, services, facts)
        inputs = (task.attachments, task.ports, sandbox.networks, sandbox.local, sandbox.lease, facts, vips)
        return self._plan(
            sandbox_namespace(task.id),
            inputs,
            lambda: plan_sandbox(task, sandbox.networks, facts, sandbox.lease, vips, sandbox.local),
        )

    def keep(self, view: ViewParts, sandboxes: Iterable[Sandbox]) -> None:
        """Forget what was kept for networks and services that are gone."""
        sets = {frozenset(sandbox.networks) for sandbox in sandboxes}
        self._vips = {networks: known for networks, known in self._vips.items() if networks in sets}
        alive = {(item.network, item.service) for items in view.services.values() for item in items}
        self._described = {key: known for key, known in self._described.items() if key in alive}

    def forget(self, namespace: str) -> None:
        self._known.pop(namespace, None)

    def _vips_on(self, networks: Iterable[NetworkID], services: Services, facts: HostFacts) -> Part:
        """Made once for all sandboxes with the same networks: the same object as long as nothing changes."""
        key = frozenset(networks)
        items = tuple(item for network in sorted(key) for item in services.get(network, ()))
        inputs = (items, facts.balancer, facts.lacks_ipvs, facts.sockets)
        known = self._vips.get(key)
        if known is not None and known[0] == inputs:
            return known[1]
        part = vip_part(items, facts.balancer, self._describe, lacks_ipvs=facts.lacks_ipvs, sockets=facts.sockets)
        if known is not None and known[1] == part:  # names changed, and no address
            part = known[1]
        self._vips[key] = (inputs, part)
        return part

    def _describe(self, item: ServiceItem) -> tuple[Virtual, ...]:
        key = (item.network, item.service)
        known = self._described.get(key)
        if known is None or (known[0] is not item and known[0] != item):
            known = self._described[key] = (item, virtual(item))
        return known[1]

    def _overlay(self, network: NetworkItem, facts: HostFacts, peers: tuple[PeerItem, ...]) -> NamespacePlan:
        return self._plan(
            overlay_namespace(network.id), (network, facts, peers), lambda: plan_overlay(network, facts, peers)
        )

    def _plan(self, name: str, inputs: tuple[object, ...], make: Callable[[], NamespacePlan]) -> NamespacePlan:
        known = self._known.get(name)
        if known is not None and known[0] == inputs:
            return known[1]
        plan = make()
        self._known[name] = (inputs, plan)
        return plan


def _published(sandbox: Sandbox) -> tuple[ContainerPort, ...]:
    """What a plain container publishes."""
    lease = sandbox.lease
    return ports_of(sandbox.task, sandbox.local, (lease.v4.ip, lease.v6.ip) if lease is not None else None)


def _host_ports(sandbox: Sandbox) -> list[HostPort]:
    """What a task publishes in host mode."""
    lease = sandbox.lease
    if lease is None or sandbox.task.attached:
        return []
    v4, v6 = asked_at(sandbox.task, sandbox.local, (lease.v4.ip, lease.v6.ip))
    if v4 is None or v6 is None:
        return []
    return [
        HostPort(protocol=port.protocol, port=port.published_port, target=port.target_port, v4=v4, v6=v6)
        for port in sandbox.ports
    ]
