"""What the managers know of networks, for who inspects them. Pure."""

from collections.abc import Iterable

from hivemesh.control import ports
from hivemesh.control.addresses import held, kept
from hivemesh.ipam.leases import Leases
from hivemesh.model.addr import address_of
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import Service
from hivemesh.model.task import Task, TaskState
from hivemesh.store.tables import View
from hivemesh.wire.insight import MOST, Host, Insight, Insights, Member, Offer, Usage


def overview(view: View) -> Insights:
    """All networks, with the nodes and services on them."""
    networks = sorted(view.all(Network), key=lambda network: (network.created, network.id))
    return Insights(
        networks=tuple(
            Insight(network=network, hosts=tuple(_hosts(view, network)), services=tuple(_offers(view, network)))
            for network in networks
        )
    )


def detail(view: View, network: Network) -> Insight:
    """One network with everybody on it."""
    return Insight(
        network=network,
        hosts=tuple(_hosts(view, network)),
        services=tuple(_offers(view, network)),
        members=tuple(_members(view, network)),
        usage=tuple(_usage(view, network)),
    )


def _hosts(view: View, network: Network) -> Iterable[Host]:
    for node in view.all(Node):
        own = next((own for own in node.attachments if own.network_id == network.id), None)
        if node.vtep is not None and own is not None:
            yield Host(id=node.id, name=node.description.hostname, vtep=node.vtep, own=own)


def _offers(view: View, network: Network) -> Iterable[Offer]:
    ingress = ports.ingress(view)
    for service in sorted(view.all(Service), key=lambda service: service.spec.name):
        named = any(config.target == network.id for config in service.spec.task_template.networks)
        published = network is ingress and any(port.publish_mode == "ingress" for port in service.ports)
        if named or published:
            vips = (vip for vip in service.vips if vip.network_id == network.id)
            yield Offer(
                service=service.id,
                name=service.spec.name,
                vips=tuple(address_of(interface) for vip in vips for interface in vip.addresses),
                ports=service.ports,
            )


def _members(view: View, network: Network) -> Iterable[Member]:
    for task in sorted(view.all(Task), key=lambda task: (task.service_name, task.slot, task.created)):
        node = view.get(Node, task.node_id) if task.node_id else None
        for attachment in task.attachments:
            if attachment.network_id == network.id and not task.status.state.dead:
                yield Member(
                    name=task.container or task.name,
                    endpoint=attachment.endpoint_id,
                    addresses=attachment.addresses,
                    mac=attachment.mac,
                    service=task.service_id,
                    node=task.node_id,
                    host=node.addr if node is not None else "",
                    container=task.status.container_id,
                    running=task.status.state == TaskState.RUNNING,
                    serving=task.serving,
                )


def _usage(view: View, network: Network) -> Iterable[Usage]:
    for subnet in network.subnets:
        lease = Leases(subnet)
        for _, addresses in held(view, network.id):
            for address in addresses:
                lease.hold(address)
        for reserved in kept(view, network.id):
            lease.reserve(reserved)
        yield Usage(subnet=str(subnet.prefix), in_use=lease.in_use, free=min(lease.free, MOST))
