"""What nodes would tell of their kernels, made from what is wanted of them: pictures of swarms that do not exist."""

from ipaddress import ip_address

from world import World, publish, spec

from hivemesh.dataplane.plan.names import (
    INGRESS_MARK,
    INGRESS_SANDBOX,
    endpoint_port,
    overlay_mark,
    overlay_namespace,
    sandbox_mark,
    sandbox_namespace,
)
from hivemesh.model.ids import NodeID
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.task import Attachment, Task
from hivemesh.store.tables import View
from hivemesh.web.compose import Seen, compose
from hivemesh.wire.topology import Device, Picture, Sight, Space


class Swarm(World):
    """Its ids differ in their first characters, as real ones do: names in the kernel are made of those."""

    def new_id(self) -> str:
        return f"{next(self._ids):010d}".ljust(25, "0")


def a_swarm(nodes: int = 3) -> Swarm:
    world = Swarm(nodes)
    world.create_network("back")
    world.create(spec("web", 3, ports=[publish(8080)], networks=["back"]))
    world.create(spec("db", 1, networks=["back"]))
    for _ in range(4):
        world.agents()
    return world


def picture_of(world: World, seen: dict[NodeID, Seen] | None = None, **more: object) -> Picture:
    told = sights(world.view) if seen is None else seen
    return compose(world.view, told, leader=world.node("n1").id, **more)  # type: ignore[arg-type]


def sights(view: View) -> dict[NodeID, Seen]:
    """Of all nodes, each kernel as it should be."""
    here: dict[NodeID, list[Task]] = {node.id: [] for node in view.all(Node)}
    for task in view.all(Task):
        if task.node_id is not None and task.placed and not task.status.state.dead:
            here[task.node_id].append(task)
    return {node.id: Seen(sight=sight_of(view, node, here[node.id])) for node in view.all(Node)}


def sight_of(view: View, node: Node, tasks: list[Task]) -> Sight:
    networks = {network.id: network for network in view.all(Network)}
    present = {a.network_id: networks[a.network_id] for a in node.attachments}
    spaces = [
        Space(
            namespace="",
            mark="",
            devices=(
                Device(name="hm_gwbridge", kind="bridge", mtu=1500, addresses=("172.18.0.1/16",)),
                Device(name="eth0", mtu=1500, addresses=(f"{node.vtep}/24",)),
            ),
        )
    ]
    for network in present.values():
        spaces.append(
            Space(
                namespace=overlay_namespace(network.id),
                mark=overlay_mark(network.id),
                devices=(
                    Device(name="br0", kind="bridge", mtu=1450),
                    Device(name="vxlan0", kind="vxlan", mtu=1450, master="br0", vni=network.vni or 0),
                ),
                vteps={str(other.vtep): 1 for other in view.all(Node) if other.id != node.id},
            )
        )
    ingress = next((a for a in node.attachments if networks[a.network_id].spec.ingress), None)
    if ingress is not None:
        devices = (_plugged("eth0", ingress), _gateway("eth1", "ingress"))
        spaces.append(Space(namespace=INGRESS_SANDBOX, mark=INGRESS_MARK, devices=devices))
    for task in tasks:
        ends = [_plugged(f"eth{n}", a) for n, a in enumerate(task.attachments) if a.network_id in present]
        ends.append(_gateway(f"eth{len(ends)}", task.id[:8]))
        spaces.append(Space(namespace=sandbox_namespace(task.id), mark=sandbox_mark(task.id), devices=tuple(ends)))
    vtep = node.vtep or ip_address("0.0.0.0")
    return Sight(node=node.description.hostname, node_id=node.id, at=0.0, vtep=vtep, spaces=tuple(spaces))


def _plugged(name: str, attachment: Attachment) -> Device:
    return Device(
        name=name,
        kind="veth",
        mtu=1450,
        addresses=tuple(map(str, attachment.addresses)),
        peer=f"{overlay_namespace(attachment.network_id)}/{endpoint_port(attachment.endpoint_id)}",
        plugged="br0",
    )


def _gateway(name: str, owner: str) -> Device:
    return Device(name=name, kind="veth", mtu=1500, peer=f"/hm-ve-{owner}", plugged="hm_gwbridge")
