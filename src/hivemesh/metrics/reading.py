"""What the kernel of this node has counted, named after the view. Reads only, and opens no door of its own: one opened
while its namespace goes would keep that alive.
"""

import contextlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from hivemesh.cnm.node import ViewParts
from hivemesh.dataplane.balancer import ipvs
from hivemesh.dataplane.balancer.nftables import REFUSE, VIP_TABLE
from hivemesh.dataplane.plan import traffic
from hivemesh.dataplane.plan.host import HOST_PORTS
from hivemesh.dataplane.plan.names import (
    INGRESS_SANDBOX,
    TABLE,
    VXLAN,
    endpoint_port,
    overlay_namespace,
    sandbox_namespace,
)
from hivemesh.kernel import ipvs_counts, nft, rtnl
from hivemesh.kernel.api import HOST, NamespacePlan
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.metrics import families as f
from hivemesh.metrics.tally import Sample
from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID
from hivemesh.model.task import Task
from hivemesh.wire.nft import protocol_port, protocol_port_of

Plans = Mapping[str, NamespacePlan]
CONTAINERS = "containers"
"""In place of a service's name: plain containers on networks of the swarm."""


def read(parts: ViewParts, plans: Plans, hooks: SocketHooks | None) -> list[Sample]:
    """Blocks for some milliseconds; what cannot be read is left out."""
    found: list[Sample] = []
    for part in (
        _mesh(parts, plans),
        _mesh_by_ipvs(parts, plans),
        _host_mode(parts, plans),
        _vips(parts, plans, hooks),
        _vips_by_ipvs(parts, plans),
        _links(parts, plans),
        _drops(plans),
    ):
        with contextlib.suppress(OSError):
            found += part
    return found


def sandboxes(plans: Plans) -> Iterator[tuple[str, NamespacePlan]]:
    """Those of tasks and containers, by namespace."""
    return ((name, plan) for name, plan in plans.items() if plan.mark.startswith("hivemesh/sandbox/"))


def networks_of(plan: NamespacePlan) -> set[str]:
    """The overlay namespaces that a sandbox is plugged into."""
    return {link.outer.namespace for link in plan.links if hasattr(link, "outer") and link.outer.namespace}


# --- published ports --------------------------------------------------------------------------------------------------


def _mesh(parts: ViewParts, plans: Plans) -> Iterator[Sample]:
    plan = plans.get(INGRESS_SANDBOX)
    tables = [t for t in plan.tables if t.name == traffic.TRAFFIC_TABLE] if plan is not None else []
    if not tables:
        return
    backends: dict[bytes, tuple[str, ...]] = {}
    ports: dict[bytes, tuple[str, ...]] = {}
    for item in parts.publishes:
        port = (item.service_name, item.protocol, str(item.port))
        ports[protocol_port(item.protocol, item.inside)] = port
        for backend in item.backends:
            for address in backend.addresses:
                backends[traffic.backend_key(address, item.protocol, item.inside)] = (*port, str(address))
    for table in tables:
        counted = nft.counters(INGRESS_SANDBOX, table.family, table.name, [m.name for m in table.maps]).elements
        for what, family, more in (
            (traffic.BEGUN, f.CONNECTIONS, ()),
            (traffic.TOWARD, f.BYTES, ("to_backend",)),
            (traffic.BACK, f.BYTES, ("from_backend",)),
        ):
            for key, (counter, _) in counted.get(what, {}).items():
                if (labels := backends.get(key)) is not None:
                    value = counter.bytes if family is f.BYTES else counter.packets
                    yield family.name, (*labels, *more), key.hex(), value
        for key, (counter, _) in counted.get(traffic.REFUSED, {}).items():
            if (labels := ports.get(key)) is not None:
                yield f.REFUSED.name, labels, f"{table.family} {key.hex()}", counter.packets


def _mesh_by_ipvs(parts: ViewParts, plans: Plans) -> Iterator[Sample]:
    """Connection tracking, and with it what else counts connections, does not see these."""
    plan = plans.get(INGRESS_SANDBOX)
    if plan is None or not plan.ipvs:
        return
    marks = {ipvs.port_mark(item.protocol, item.inside): item for item in parts.publishes}
    for (_, mark), backends in ipvs_counts.connections_by_backend(INGRESS_SANDBOX).items():
        if (item := marks.get(mark)) is not None:
            for address, connections in backends.items():
                labels = (item.service_name, item.protocol, str(item.port), str(address))
                yield f.CONNECTIONS.name, labels, f"ipvs {mark}", connections


# --- ports in host mode -----------------------------------------------------------------------------------------------


def host_backends(parts: ViewParts, plans: Plans) -> dict[Address, Task]:
    """Where this node's own tasks are asked that publish ports in host mode."""
    found = {}
    for identifier, item in parts.tasks.items():
        plan = plans.get(sandbox_namespace(identifier))
        if plan is not None and any(port.publish_mode == "host" for port in item.task.ports):
            found.update({address.address.ip: item.task for address in plan.addresses})
    return found


def _host_mode(parts: ViewParts, plans: Plans) -> Iterator[Sample]:
    """Connections as the host leads them to their tasks; bytes as the tasks' sandboxes see them. Of several ports that
    lead to the same one the lowest gets the bytes."""
    tasks = host_backends(parts, plans)
    table = next((t for t in plans[HOST].tables if t.name == TABLE), None) if HOST in plans else None
    if not tasks or table is None:
        return
    maps = {m.name: m.elements for m in table.maps if m.name.startswith(HOST_PORTS)}
    counted = nft.counters(HOST, table.family, table.name, tuple(maps)).elements
    ends: dict[tuple[str, str, bytes], tuple[str, ...]] = {}  # namespace, family, protocol and port there
    for name, elements in maps.items():
        for key in sorted(elements):
            target, (protocol, port) = elements[key], protocol_port_of(key)
            assert isinstance(target, bytes)
            address = ipaddress.ip_address(target[:-4])
            if (task := tasks.get(address)) is None:
                continue
            labels = (task.service_name, protocol, str(port), str(address))
            family = "ip" if address.version == 4 else "ip6"
            inside = protocol_port(protocol, int.from_bytes(target[-4:-2], "big"))
            ends.setdefault((sandbox_namespace(task.id), family, inside), labels)
            if (found := counted.get(name, {}).get(key)) is not None:
                yield f.CONNECTIONS.name, labels, f"{name} {target.hex()}", found[0].packets
    for namespace, family in sorted({(namespace, family) for namespace, family, _ in ends}):
        inner = nft.counters(namespace, family, traffic.TRAFFIC_TABLE, (traffic.TOWARD, traffic.BACK)).elements
        for what, way in ((traffic.TOWARD, "to_backend"), (traffic.BACK, "from_backend")):
            for key, (counter, _) in inner.get(what, {}).items():
                if (end := ends.get((namespace, family, key))) is not None:
                    yield f.BYTES.name, (*end, way), f"{namespace} {family}", counter.bytes


# --- virtual addresses ------------------------------------------------------------------------------------------------


def _vips(parts: ViewParts, plans: Plans, hooks: SocketHooks | None) -> Iterator[Sample]:
    names = _vip_names(parts)
    for namespace, plan in sandboxes(plans):
        table = next((t for t in plan.tables if t.name == VIP_TABLE), None)
        if table is None:
            continue
        here, counted = networks_of(plan), nft.counters(namespace, table.family, table.name, ("vips4", "vips6"))
        for found in counted.elements.values():
            for key, (counter, chain) in found.items():
                labels = _vip_labels(names, here, ipaddress.ip_address(key))
                if labels is not None and counter.packets:
                    outcome = "refused" if chain == REFUSE else "led"
                    yield f.VIP_CONNECTIONS.name, (*labels, outcome), f"{namespace} {key.hex()}", counter.packets
    for namespace, address, connections in hooks.counted() if hooks is not None else ():
        sandbox = plans.get(namespace)
        labels = _vip_labels(names, networks_of(sandbox), address) if sandbox is not None else None
        if labels is not None and connections:
            yield f.VIP_CONNECTIONS.name, (*labels, "led"), f"{namespace} {address} sockets", connections


def _vips_by_ipvs(parts: ViewParts, plans: Plans) -> Iterator[Sample]:
    names = _vip_names(parts)
    for namespace, plan in sandboxes(plans):
        table = next((t for t in plan.tables if t.name == ipvs.TABLE), None) if plan.ipvs else None
        if table is None:
            continue
        marks, here = ipvs.vip_marks(table), networks_of(plan)
        for (_, mark), connections in ipvs_counts.connections(namespace).items():
            labels = _vip_labels(names, here, marks[mark]) if mark in marks else None
            if labels is not None and connections:
                yield f.VIP_CONNECTIONS.name, (*labels, "led"), f"{namespace} ipvs {mark}", connections
        counted = nft.counters(namespace, table.family, table.name, (f"{ipvs.REFUSED}4", f"{ipvs.REFUSED}6"))
        for found in counted.elements.values():
            for key, (counter, _) in found.items():
                labels = _vip_labels(names, here, ipaddress.ip_address(key))
                if labels is not None and counter.packets:
                    yield f.VIP_CONNECTIONS.name, (*labels, "refused"), f"{namespace} {key.hex()}", counter.packets


def _vip_names(parts: ViewParts) -> dict[tuple[str, Address], tuple[str, str]]:
    return {
        (overlay_namespace(item.network), vip): (item.name, _network_name(parts, item.network))
        for items in parts.services.values()
        for item in items
        for vip in item.vips
    }


def _vip_labels(
    names: Mapping[tuple[str, Address], tuple[str, str]], networks: Iterable[str], address: Address
) -> tuple[str, str] | None:
    return next((found for network in networks if (found := names.get((network, address))) is not None), None)


def _network_name(parts: ViewParts, network: NetworkID) -> str:
    item = parts.networks.get(network)
    return item.name if item is not None else network


# --- links ------------------------------------------------------------------------------------------------------------


def _links(parts: ViewParts, plans: Plans) -> Iterator[Sample]:
    """A link's own words are turned round: what comes in from a task's port is what the task sent."""
    owners: dict[tuple[str, str], str] = {}
    for item in parts.tasks.values():
        for attachment in item.task.attachments:
            place = (overlay_namespace(attachment.network_id), endpoint_port(attachment.endpoint_id))
            owners[place] = CONTAINERS if item.task.attached else item.task.service_name
    for network in parts.networks.values():
        namespace = overlay_namespace(network.id)
        door = rtnl.held(namespace) if namespace in plans else None
        if door is None:
            continue
        for name, seen in door.traffic().items():
            source, owner = f"{namespace} {name}", owners.get((namespace, name))
            if name == VXLAN:
                yield f.TUNNEL_BYTES.name, (network.name, "received"), source, seen.received
                yield f.TUNNEL_BYTES.name, (network.name, "sent"), source, seen.sent
                yield f.TUNNEL_DROPPED.name, (network.name,), source, seen.dropped
            elif owner is not None:
                yield f.SERVICE_BYTES.name, (owner, network.name, "received"), source, seen.sent
                yield f.SERVICE_BYTES.name, (owner, network.name, "sent"), source, seen.received
                yield f.SERVICE_DROPPED.name, (owner, network.name), source, seen.dropped


# --- rules that turn packets away -------------------------------------------------------------------------------------


def _drops(plans: Plans) -> Iterator[Sample]:
    places = [(HOST, "host"), (INGRESS_SANDBOX, "ingress"), *((name, "sandbox") for name, _ in sandboxes(plans))]
    for namespace, place in places:
        plan = plans.get(namespace)
        for table in plan.tables if plan is not None else ():
            if table.family != "inet" or table.name not in (TABLE, VIP_TABLE, ipvs.TABLE):
                continue
            for chain, reason, counter in nft.counters(namespace, table.family, table.name, ()).rules:
                yield f.DROPPED.name, (place, reason), f"{namespace} {chain}", counter.packets
