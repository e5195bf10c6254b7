"""Networks of the swarm that each node makes itself: managers say who is on them, and grant nothing there."""

from typing import Any

import msgspec
import pytest
from world import World, publish, spec

from hivemesh.control import attachments, networks
from hivemesh.control.views import derive
from hivemesh.model.errors import Forbidden, HivemeshError, Invalid, Unsupported
from hivemesh.model.ids import ID_LENGTH, TaskID
from hivemesh.model.network import IPAMConfig, NetworkSpec
from hivemesh.model.service import NetworkAttachmentConfig
from hivemesh.wire.control import AttachRequest, Joining, LocalNetworkItem, NetworkItem, PeerItem, ServiceItem

WIRE = NetworkSpec(name="wire", driver="macvlan", config_from="conf", attachable=True)


def world_with(wanted: NetworkSpec = WIRE) -> World:
    world = World(2)
    world.change(lambda tx: networks.create(tx, wanted, world.now, world.new_id()))
    return world


def test_tasks_are_on_it_and_have_neither_addresses_nor_a_virtual_one() -> None:
    world = world_with()
    world.create_network("front", "10.9.0.0/24")
    world.create(spec("web", 2, networks=("wire", "front"), ports=(publish(8080),)))
    world.agents()
    wire, front = world.network("wire"), world.network("front")
    assert (wire.vni, wire.subnets, wire.error) == (None, (), "")
    assert wire.id not in {vip.network_id for vip in world.service("web").vips}
    for task in world.wanted("web"):
        given = {a.network_id: len(a.addresses) for a in task.attachments}
        assert (given[wire.id], given[front.id]) == (0, 1)
    for name in ("n1", "n2"):
        node = world.node(name)
        assert wire.id not in {attachment.network_id for attachment in node.attachments}
        items = list(derive(world.view, node.id).values())
        assert [item.spec for item in items if isinstance(item, LocalNetworkItem)] == [WIRE]
        of_wire = [i for i in items if isinstance(i, PeerItem | ServiceItem) and i.network == wire.id]
        assert of_wire == []
        assert wire.id not in {item.id for item in items if isinstance(item, NetworkItem)}
    assert world.at_rest()


def test_a_node_hears_of_it_only_while_somebody_there_is_on_it() -> None:
    world = world_with()
    world.create(spec("web", 1, networks=("wire",)))
    world.agents()
    (task,) = world.wanted("web")
    told = {
        node.id: any(isinstance(item, LocalNetworkItem) for item in derive(world.view, node.id).values())
        for node in (world.node("n1"), world.node("n2"))
    }
    assert [node for node, told_of in told.items() if told_of] == [task.node_id]


def test_a_plain_container_is_told_what_to_make() -> None:
    world = world_with()
    request = AttachRequest(task=TaskID("a" * ID_LENGTH), container="box", networks=(Joining(network="wire"),))
    reply = world.change(lambda tx: attachments.attach(tx, world.node("n2").id, request, world.now, world.new_id))
    assert [item.spec for item in reply.local] == [WIRE]
    assert [attachment.addresses for attachment in reply.task.attachments] == [()]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"driver": "ipvlan"}, Unsupported, "use overlay, bridge, macvlan"),
        ({"ingress": True}, Invalid, "can only be of the overlay driver"),
        ({"ipam": (IPAMConfig(subnet="10.1.0.0/24"),)}, Forbidden, "user-specified configurations are not supported"),
        ({"options": {"parent": "eth0"}}, Forbidden, "user-specified configurations are not supported"),
        ({"config_from": "", "options": {"nosuch": "1"}}, Unsupported, "the option nosuch is not supported"),
        ({"config_from": "", "options": {"macvlan_mode": "odd"}}, Invalid, "unknown macvlan mode 'odd'"),
        ({"config_from": "", "ipam": (IPAMConfig(gateway="10.1.0.1"),)}, Invalid, "needs a subnet"),
    ],
)
def test_what_no_node_could_make_is_refused(changes: dict[str, Any], error: type[HivemeshError], words: str) -> None:
    with pytest.raises(error, match=words):
        world_with(msgspec.structs.replace(WIRE, **changes))


def test_what_only_managers_could_grant_is_refused() -> None:
    world = world_with()
    fixed = spec("db", 1)
    on_wire = (NetworkAttachmentConfig(target="wire", driver_opts={"ip": "10.44.0.9"}),)
    template = msgspec.structs.replace(fixed.task_template, networks=on_wire)
    with pytest.raises(Unsupported, match="a static address is not supported on a network of driver macvlan"):
        world.create(msgspec.structs.replace(fixed, task_template=template))
    with pytest.raises(Unsupported, match="mode host is not supported on network wire of driver macvlan"):
        world.create(spec("web", networks=("wire",), ports=(publish(8080, mode="host"),)))
