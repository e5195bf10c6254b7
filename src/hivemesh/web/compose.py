"""What is wanted and what the nodes' kernels hold, as one picture: boxes in boxes, and the lines between them. Pure.

Wanted, from the store: services, tasks, networks, nodes. Held, from sights: namespaces, links, who is plugged in where,
forwarding entries. Where the two differ, what the kernel holds is drawn, and coloured.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from hivemesh.dataplane.plan.names import (
    GATEWAY_BRIDGE,
    INGRESS_SANDBOX,
    overlay_namespace,
    sandbox_namespace,
)
from hivemesh.model.addr import address_of
from hivemesh.model.ids import NetworkID, NodeID, ServiceID, TaskID, short
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import PortConfig, Service
from hivemesh.model.task import Task, TaskState
from hivemesh.store.tables import View
from hivemesh.web.layout import laid_out
from hivemesh.wire.topology import Device, Item, Link, Picture, Sight, Space, State

DETAILED = 18
"""Sandboxes of all nodes together up to which each is drawn with its links; beyond, of nodes that are opened only."""
SHY = 40
"""Tasks beyond which the lines from services to their tasks are drawn only for who asks."""
LISTED = 8
"""Nodes that an overlay sends to up to which each is named."""
SANDBOX_MARK = "hivemesh/sandbox/"
COLOURS = 12
"""Networks take them from the first on, services from the last."""

OUTSIDE = "outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one node told of its kernel. `silent`: why nothing was heard lately."""

    sight: Sight | None = None
    silent: str = ""


@dataclass(slots=True)
class _Drawing:
    """What is on the sheet so far."""

    view: View
    networks: tuple[Network, ...]
    services: tuple[Service, ...]
    tasks: Mapping[NodeID, list[Task]]
    items: list[Item] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Of nodes, by the ends of their tunnels."""

    def __post_init__(self) -> None:
        nodes = self.view.all(Node)
        self.names = {str(node.vtep): node.description.hostname or short(node.id) for node in nodes}

    def hue_of(self, network: NetworkID) -> int:
        return next((i % COLOURS for i, n in enumerate(self.networks) if n.id == network), -1)

    def shade_of(self, service: ServiceID) -> int:
        found = next((i for i, s in enumerate(self.services) if s.id == service), None)
        return -1 if found is None else COLOURS - 1 - found % COLOURS


def compose(
    view: View, seen: Mapping[NodeID, Seen], *, leader: NodeID | None = None, opened: Iterable[NodeID] = (),
    detailed: bool | None = None, columns: int = 0,
) -> Picture:  # fmt: skip
    """`opened` nodes show the links of their sandboxes; `detailed` says so of all nodes, None: as many as fit.
    `columns` machines stand in a row, 0: as suits a screen.
    """
    tasks: dict[NodeID, list[Task]] = defaultdict(list)
    for task in view.all(Task):
        if task.node_id is not None and task.placed and not task.status.state.dead:
            tasks[task.node_id].append(task)
    for some in tasks.values():
        some.sort(key=lambda task: (_natural(task.service_name or task.container), task.slot, task.created))
    networks = sorted(view.all(Network), key=lambda n: (not n.spec.ingress, n.created, n.id))
    services = sorted(view.all(Service), key=lambda s: (s.created, s.id))
    sheet = _Drawing(view, tuple(networks), tuple(services), tasks)
    count = sum(map(len, tasks.values()))
    if detailed is None:
        detailed = count <= DETAILED
    open_nodes = set(opened)
    _services(sheet, shy=count > SHY)
    nodes = sorted(view.all(Node), key=lambda node: (_natural(node.description.hostname), node.id))
    for node in nodes:
        _machine(sheet, node, seen.get(node.id, Seen()), leader, whole=detailed or node.id in open_nodes)
    known = {item.id for item in sheet.items}
    links = [link for link in sheet.links if link.source in known and (link.target in known or link.kind == "tunnel")]
    lanes = [(n.id, _lane_title(n), sheet.hue_of(n.id)) for n in networks]
    summary = (
        ("nodes", f"{sum(node.state == 'ready' for node in nodes)}/{len(nodes)}"),
        ("services", str(len(services))),
        ("tasks", f"{sum(t.serving for some in tasks.values() for t in some)}/{count}"),
        ("networks", str(len(networks))),
    )
    return laid_out(view.cluster.spec.name or "swarm", sheet.items, links, lanes, summary, columns)


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """n10 comes after n9."""
    return tuple((int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text))


def _lane_title(network: Network) -> str:
    return f"{network.spec.name} · {network.vni}" if network.vni is not None else network.spec.name


# --- services -------------------------------------------------------------------------------------------------------


def _services(sheet: _Drawing, *, shy: bool) -> None:
    backends: dict[ServiceID, list[Task]] = defaultdict(list)
    for some in sheet.tasks.values():
        for task in some:
            backends[task.service_id].append(task)
    published = any(port.publish_mode == "ingress" for service in sheet.services for port in service.ports)
    if published:
        sheet.items.append(
            Item(id=OUTSIDE, kind="outside", title="clients", note="any node answers", source="outside",
                 facts=(("what", "whoever uses a published port, on any node"),))
        )  # fmt: skip
    for service in sheet.services:
        found = backends[service.id]
        _service(sheet, service, found)
        identifier = f"service/{service.id}"
        for task in found:
            sheet.links.append(
                Link(
                    id=f"vip/{service.id}/{task.id}", kind="vip", source=identifier, target=_sandbox_id(task),
                    state="good" if task.serving else "busy", hue=sheet.shade_of(service.id), shy=shy,
                    service=service.id,
                )
            )  # fmt: skip


def _service(sheet: _Drawing, service: Service, tasks: list[Task]) -> None:
    serving = sum(task.serving for task in tasks)
    mode = service.spec.mode
    wanted = mode.replicated.replicas if mode.replicated is not None else len(tasks)
    named = {network.id: network.spec.name for network in sheet.networks}
    ingress = {network.id for network in sheet.networks if network.spec.ingress}
    vips = [(vip.network_id, str(address_of(a))) for vip in service.vips for a in vip.addresses]
    inner = [address for network, address in vips if network not in ingress]
    doors = [_door(p) for p in service.ports if p.publish_mode == "ingress"]
    own = [f"{_door(p)} on each" for p in service.ports if p.publish_mode == "host" and p.published_port]
    facts = [
        ("replicas", f"{serving} of {wanted} serve"),
        ("image", tasks[0].spec.container_spec.image if tasks else ""),
    ]
    facts += [(f"address on {named.get(network, short(network))}", address) for network, address in vips]
    facts += [
        (f"published {p.publish_mode}", f"{p.published_port} to {p.target_port}/{p.protocol}") for p in service.ports
    ]
    identifier = f"service/{service.id}"
    state: State = "good" if serving >= wanted else "busy" if serving else "bad" if wanted else "idle"
    sheet.items.append(
        Item(
            id=identifier, kind="service", title=service.spec.name,
            note=" · ".join([f"{serving}/{wanted}", *inner[:1], *(doors + own)[:2]]),
            state=state, hue=sheet.shade_of(service.id), facts=tuple((k, v) for k, v in facts if v),
            service=service.id, target=service.spec.name, door=doors[0] if doors else "",
            networks=tuple(dict.fromkeys(network for network, _ in vips)),
        )
    )  # fmt: skip
    if doors:
        sheet.links.append(
            Link(id=f"publish/{service.id}", kind="publish", source=OUTSIDE, target=identifier, title=" ".join(doors),
                 hue=sheet.shade_of(service.id), service=service.id)
        )  # fmt: skip


# --- machines -------------------------------------------------------------------------------------------------------


def _door(port: PortConfig) -> str:
    return f":{port.published_port}{'' if port.protocol == 'tcp' else '/' + port.protocol}"


def _sandbox_id(task: Task) -> str:
    return f"{task.node_id}/{sandbox_namespace(task.id)}"


def _machine(sheet: _Drawing, node: Node, seen: Seen, leader: NodeID | None, *, whole: bool) -> None:
    state, words = _condition(node, seen)
    role = "leader" if node.id == leader else node.acting_role
    notes = [role, str(node.vtep or node.addr), words]
    description = node.description
    facts = (
        ("id", node.id),
        ("role", f"{node.acting_role}{', leads' if node.id == leader else ''}"),
        ("state", f"{node.state}{': ' if node.message else ''}{node.message}"),
        ("availability", node.spec.availability),
        ("address", node.addr),
        ("end of tunnels", str(node.vtep or "")),
        ("engine", description.engine),
        ("processors", f"{description.nano_cpus / 1e9:g}" if description.nano_cpus else ""),
        ("memory", f"{description.memory_bytes / 2**30:.1f} GiB" if description.memory_bytes else ""),
    )
    sheet.items.append(
        Item(
            id=node.id, kind="machine", title=description.hostname or short(node.id),
            note=" · ".join(filter(None, notes)), state=state, facts=tuple((k, v) for k, v in facts if v),
            node=node.id, source="outside",
        )
    )  # fmt: skip
    spaces = {space.namespace: space for space in seen.sight.spaces} if seen.sight is not None else {}
    _sandboxes(sheet, node, spaces, whole=whole, told=seen.sight is not None)
    for network in sheet.networks:
        space = spaces.get(overlay_namespace(network.id))
        if space is not None:
            _overlay(sheet, node, network, space, whole=whole)
    if "" in spaces:
        _host(sheet, node, spaces[""], whole=whole)


def _condition(node: Node, seen: Seen) -> tuple[State, str]:
    if node.state != "ready":
        return "bad", node.message or node.state
    if seen.silent:
        return "warn", seen.silent
    if node.spec.availability != "active":
        return "idle", node.spec.availability
    return "good", ""


def _sandboxes(sheet: _Drawing, node: Node, spaces: Mapping[str, Space], *, whole: bool, told: bool) -> None:
    ingress = spaces.get(INGRESS_SANDBOX)
    if ingress is not None:
        _sandbox(
            sheet, node, ingress,
            Item(id=f"{node.id}/{INGRESS_SANDBOX}", kind="ingress", title=INGRESS_SANDBOX, parent=node.id,
                 node=node.id, namespace=INGRESS_SANDBOX, source="outside",
                 facts=(("what", "takes what comes to published ports, and chooses a task"),)),
            whole=whole,
        )  # fmt: skip
    drawn: set[TaskID] = set()
    for task in sheet.tasks.get(node.id, ()):
        drawn.add(task.id)
        namespace = sandbox_namespace(task.id)
        addresses = [str(address_of(i)) for a in task.attachments for i in a.addresses]
        facts = (
            ("task", task.name),
            ("state", f"{task.status.state.name.lower()}{': ' if task.status.err else ''}{task.status.err}"),
            ("serves", "yes" if task.serving else "no"),
            ("image", task.spec.container_spec.image),
            ("addresses", ", ".join(addresses)),
            ("namespace", namespace),
        )
        item = Item(
            id=_sandbox_id(task), kind="sandbox", title=_task_title(task), parent=node.id,
            state=_task_state(task) if node.state == "ready" else "idle", hue=sheet.shade_of(task.service_id),
            facts=tuple((k, v) for k, v in facts if v), node=node.id, namespace=namespace, service=task.service_id,
            source=task.id, target=task.name, networks=tuple(a.network_id for a in task.attachments),
        )  # fmt: skip
        space = spaces.get(namespace)
        if space is None and told and task.status.state == TaskState.RUNNING and task.attachments:
            space = Space(namespace=namespace, mark="", problem="the node has no such namespace")
        _sandbox(sheet, node, space, item, whole=whole)
    for namespace, space in spaces.items():
        owner = TaskID(space.mark.removeprefix(SANDBOX_MARK))
        if space.mark.startswith(SANDBOX_MARK) and owner not in drawn:
            item = Item(
                id=f"{node.id}/{namespace}", kind="sandbox", title=namespace, parent=node.id, state="idle",
                facts=(("namespace", namespace), ("whose", "a container of this node alone, or a task that ends")),
                node=node.id, namespace=namespace, source=owner,
            )  # fmt: skip
            _sandbox(sheet, node, space, item, whole=whole)


def _task_title(task: Task) -> str:
    """`web.1`; a global service has one on each node, which says where."""
    slot = f".{task.slot}" if task.slot else ""
    return task.container or f"{task.service_name}{slot}"


def _task_state(task: Task) -> State:
    if task.serving:
        return "good"
    if task.status.unhealthy:
        return "warn"
    return "busy"


def _sandbox(sheet: _Drawing, node: Node, space: Space | None, item: Item, *, whole: bool) -> None:
    """A namespace that is plugged into others, with its links if `whole`."""
    if space is None:
        sheet.items.append(item)
        return
    lost = [d.name for d in space.devices if d.kind == "veth" and (not d.up or not d.peer or not d.plugged)]
    trouble = space.problem or (f"{', '.join(lost)} leads nowhere" if lost else "")
    if trouble:
        item = msgspec.structs.replace(item, state="bad", facts=(("problem", trouble), *item.facts))
    sheet.items.append(item)
    for device in space.devices:
        identifier = f"{node.id}/{space.namespace}/{device.name}"
        if whole:
            sheet.items.append(_device(identifier, item, device, broken=device.name in lost))
        if whole and device.peer:
            outer, _, port = device.peer.partition("/")
            network = _network_of(sheet, outer)
            sheet.links.append(
                Link(
                    id=f"veth/{identifier}", kind="veth" if outer else "way out", source=identifier,
                    target=f"{node.id}/{outer}/{device.plugged}", state="good" if device.plugged else "bad",
                    hue=sheet.hue_of(network), meter=identifier, network=network, service=item.service,
                    facts=(("veth pair", f"{device.name} in {space.namespace}, {port} in {outer or 'the machine'}"),),
                )
            )  # fmt: skip


def _network_of(sheet: _Drawing, namespace: str) -> NetworkID:
    return next((n.id for n in sheet.networks if overlay_namespace(n.id) == namespace), NetworkID(""))


def _device(identifier: str, parent: Item, device: Device, *, broken: bool = False, hue: int = -1) -> Item:
    facts = (
        ("link", f"{device.kind or 'interface'} {device.name}"),
        ("addresses", ", ".join(device.addresses)),
        ("MTU", str(device.mtu)),
        ("VNI", str(device.vni or "")),
        ("port of", device.master),
        ("other end", device.peer),
        ("state", "up" if device.up else "down"),
    )
    return Item(
        id=identifier, kind="device", title=device.name, parent=parent.id,
        state="bad" if broken or not device.up else "good", hue=hue, facts=tuple((k, v) for k, v in facts if v),
        node=parent.node, namespace=parent.namespace,
    )  # fmt: skip


def _overlay(sheet: _Drawing, node: Node, network: Network, space: Space, *, whole: bool) -> None:
    hue = sheet.hue_of(network.id)
    names = sheet.names
    tunnel = next((d for d in space.devices if d.kind == "vxlan"), None)
    trouble = space.problem or ("" if tunnel is not None and tunnel.up else "its VXLAN device is missing or down")
    facts = [
        ("problem", trouble),
        ("network", network.spec.name),
        ("VNI", str(network.vni or "")),
        ("subnets", ", ".join(str(subnet.prefix) for subnet in network.subnets)),
        ("namespace", space.namespace),
    ]
    if len(space.vteps) <= LISTED:
        facts += [(f"sends to {names.get(v, v)}", f"{count} MACs, by {v}") for v, count in space.vteps.items()]
    else:
        facts.append(("sends to", f"{sum(space.vteps.values())} MACs on {len(space.vteps)} nodes"))
    item = Item(
        id=f"{node.id}/{space.namespace}", kind="overlay", title=network.spec.name, parent=node.id,
        state="bad" if trouble else "good", hue=hue, facts=tuple((k, v) for k, v in facts if v), node=node.id,
        namespace=space.namespace, network=network.id,
    )  # fmt: skip
    sheet.items.append(item)
    ends: dict[str, str] = {}
    for device in space.devices:
        identifier = f"{node.id}/{space.namespace}/{device.name}"
        ends[device.name] = identifier
        if whole:
            sheet.items.append(_device(identifier, item, device, hue=hue))
    if tunnel is None:
        return
    if whole and tunnel.master in ends:
        sheet.links.append(
            Link(id=f"port/{ends[tunnel.name]}", kind="port", source=ends[tunnel.master], target=ends[tunnel.name],
                 hue=hue, network=network.id)
        )  # fmt: skip
    sheet.links.append(
        Link(
            id=f"tunnel/{node.id}/{network.id}", kind="tunnel", source=ends[tunnel.name] if whole else item.id,
            target=f"stop/{node.id}/{network.id}", hue=hue, meter=ends[tunnel.name], network=network.id,
            state="good" if tunnel.up else "bad",
        )
    )  # fmt: skip


def _host(sheet: _Drawing, node: Node, space: Space, *, whole: bool) -> None:
    item = Item(
        id=f"{node.id}/", kind="host", title="host", parent=node.id, node=node.id,
        facts=(("what", "the machine's own namespace"), ("problem", space.problem)) if space.problem else
        (("what", "the machine's own namespace"),), state="bad" if space.problem else "good",
    )  # fmt: skip
    sheet.items.append(item)
    gateways = [d for d in space.devices if d.kind == "bridge"]
    underlay = next((d for d in space.devices if d.kind != "bridge"), None)
    for device in (*gateways, *((underlay,) if underlay is not None else ())):
        if whole:
            sheet.items.append(_device(f"{node.id}//{device.name}", item, device))
    if underlay is None:
        return
    identifier = f"{node.id}//{underlay.name}"
    if whole and any(d.name == GATEWAY_BRIDGE for d in gateways):
        sheet.links.append(
            Link(id=f"port/{identifier}", kind="port", source=f"{node.id}//{GATEWAY_BRIDGE}", target=identifier)
        )
    sheet.links.append(
        Link(id=f"tunnel/{node.id}/", kind="tunnel", source=identifier if whole else item.id,
             target=f"stop/{node.id}/", meter=identifier)
    )  # fmt: skip
