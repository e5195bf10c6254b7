"""Looking at the swarm's networks from a node that is no manager: a manager tells, else what the node knows itself."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from urllib.parse import quote

import msgspec

from hivemesh.agent import join
from hivemesh.agent.identity import Identity
from hivemesh.ipam.leases import Leases
from hivemesh.model.addr import Address, Interface, address_of
from hivemesh.model.errors import Forbidden, HivemeshError, NotFound, Unavailable
from hivemesh.model.ids import EndpointID, NodeID, ServiceID
from hivemesh.model.network import Network, NetworkSpec
from hivemesh.model.task import TaskState
from hivemesh.wire import codec
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
from hivemesh.wire.insight import MOST, Host, Insight, Insights, Member, Offer, Usage

log = logging.getLogger("hivemesh.agent")

PATIENCE = 3.0
"""Seconds a manager has to answer before the node tells what it knows."""

NO_SERVICE = ServiceID("")


async def networks(identity: Identity, view: View) -> Insights:
    """All networks of the swarm; when no manager answers, those this node takes part in."""
    try:
        async with asyncio.timeout(PATIENCE):
            return codec.from_json(await join.ask(identity, "/v1/networks"), Insights)
    except (HivemeshError, TimeoutError, msgspec.MsgspecError) as error:
        log.info("listing the networks of this node only: %s", error or "no manager answers in time")
    items = [item for item in view.values() if isinstance(item, NetworkItem)]
    found = [_network(item) for item in sorted(items, key=lambda i: i.vni)]
    found += [Network(id=item.id, spec=item.spec) for item in view.values() if isinstance(item, LocalNetworkItem)]
    return Insights(networks=tuple(Insight(network=network) for network in found))


async def network(identity: Identity, view: View, reference: str) -> Insight:
    """One network, with everybody on it. Raises `NotFound`, or `Unavailable` when nobody can tell."""
    try:
        async with asyncio.timeout(PATIENCE):
            answer = await join.ask(identity, f"/v1/networks/{quote(reference, safe='')}")
            return codec.from_json(answer, Insight)
    except (NotFound, Forbidden):
        raise
    except (HivemeshError, TimeoutError, msgspec.MsgspecError) as error:
        log.info("telling what this node knows of network %s: %s", reference, error or "no manager answers in time")
        reason = str(error) or "no manager answers in time"
    found = known(view, reference, identity.facts.node_id, identity.facts.vtep)
    if found is None:
        raise Unavailable(f"this node does not take part in network {reference}, and cannot ask a manager: {reason}")
    return found


def known(view: View, reference: str, node: NodeID, vtep: Address) -> Insight | None:
    """What the view of `node` tells of a network, by id, name or beginning of the id; None when it tells nothing.

    Whoever is only stopping is missing, and so are addresses that nodes merely reserve. Pure.
    """
    items = [item for item in view.values() if isinstance(item, NetworkItem)]
    item = next((item for item in items if reference in (item.id, item.name)), None)
    item = item or next((item for item in items if reference and item.id.startswith(reference)), None)
    if item is None:
        return _known_local(view, reference)
    peers = {peer.endpoint: peer for peer in view.values() if isinstance(peer, PeerItem) and peer.network == item.id}
    nodes = {entry.vtep: entry.id for entry in view.values() if isinstance(entry, NodeItem)}
    offers = tuple(_offers(view, item))
    members = tuple(_members(view, item, peers, nodes, node, vtep))
    here = [Host(id=node, vtep=vtep, own=item.own)]
    there = [Host(id=nodes[at], vtep=at) for at in {p.vtep for p in peers.values()} if at in nodes]
    return Insight(
        network=_network(item),
        hosts=(*here, *sorted(there, key=lambda host: host.id)),
        services=offers,
        members=members,
        usage=tuple(_usage(item, peers.values(), offers, members)),
    )


def _known_local(view: View, reference: str) -> Insight | None:
    """Of a network that each node makes itself: who is on it here, the node knows better."""
    items = [item for item in view.values() if isinstance(item, LocalNetworkItem)]
    for item in items:
        if reference in (item.id, item.spec.name) or (reference and item.id.startswith(reference)):
            return Insight(network=Network(id=item.id, spec=item.spec))
    return None


def _network(item: NetworkItem) -> Network:
    versions = {subnet.prefix.version for subnet in item.subnets}
    spec = NetworkSpec(name=item.name, ipv6=6 in versions, internal=item.internal, ingress=item.ingress)
    return Network(id=item.id, spec=spec, vni=item.vni, subnets=item.subnets)


def _offers(view: View, network: NetworkItem) -> Iterable[Offer]:
    for item in view.values():
        if isinstance(item, ServiceItem) and item.network == network.id:
            yield Offer(service=item.service, name=item.name, vips=item.vips)
    if network.ingress:
        publishing = {item.service: item for item in view.values() if isinstance(item, PublishItem)}
        yield from (Offer(service=item.service, name=item.service_name) for item in publishing.values())


def _members(
    view: View,
    network: NetworkItem,
    peers: Mapping[EndpointID, PeerItem],
    nodes: Mapping[Address, NodeID],
    node: NodeID,
    vtep: Address,
) -> Iterable[Member]:
    """Tasks of this node as they are, those elsewhere as they are named."""
    at = {address_of(interface): peer for peer in peers.values() for interface in peer.addresses}
    for item in view.values():
        match item:
            case TaskItem(task=task) if not task.status.state.dead:
                for attachment in task.attachments:
                    if attachment.network_id == network.id:
                        yield Member(
                            name=task.container or task.name,
                            endpoint=attachment.endpoint_id,
                            addresses=attachment.addresses,
                            mac=attachment.mac,
                            service=task.service_id,
                            node=node,
                            host=str(vtep),
                            container=task.status.container_id,
                            running=task.status.state == TaskState.RUNNING,
                            serving=task.serving,
                        )
            case ServiceItem(network=network.id):
                for backend in item.backends:
                    peer = at.get(backend.addresses[0])
                    if peer is not None:
                        yield _elsewhere(backend.names[0], peer, nodes, item.service)
            case EndpointItem(network=network.id):
                peer = peers.get(item.endpoint)
                if peer is not None:
                    yield _elsewhere(item.names[0], peer, nodes)
            case _:
                continue


def _elsewhere(name: str, peer: PeerItem, nodes: Mapping[Address, NodeID], service: ServiceID = NO_SERVICE) -> Member:
    return Member(
        name=name,
        endpoint=peer.endpoint,
        addresses=peer.addresses,
        mac=peer.mac,
        service=service,
        node=nodes.get(peer.vtep),
        host=str(peer.vtep),
        running=True,
        serving=True,
    )


def _usage(
    network: NetworkItem, peers: Iterable[PeerItem], offers: Iterable[Offer], members: Iterable[Member]
) -> Iterable[Usage]:
    held: set[Interface | Address] = {vip for offer in offers for vip in offer.vips}
    held |= {interface for peer in peers for interface in peer.addresses}
    held |= {interface for member in members for interface in member.addresses}
    held |= set(network.own.addresses) if network.own is not None else set()
    for subnet in network.subnets:
        lease = Leases(subnet)
        for address in held:
            lease.hold(address)
        yield Usage(subnet=str(subnet.prefix), in_use=lease.in_use, free=min(lease.free, MOST))
