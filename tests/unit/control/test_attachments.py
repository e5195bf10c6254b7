"""Plain containers on swarm networks: granted at once, kept while asked for, gone with their node."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from port_rig import eventually, open_swarm
from world import World, publish, spec

from hivemesh.agent import join as membership
from hivemesh.control import attachments, networks, nodes
from hivemesh.control.views import derive
from hivemesh.model.addr import address_of, first_v4
from hivemesh.model.errors import Conflict, Exhausted, Forbidden, HivemeshError, Invalid, NotFound
from hivemesh.model.ids import TaskID
from hivemesh.model.network import IPAMConfig, Network, NetworkSpec
from hivemesh.model.service import ContainerSpec, DNSConfig, PortConfig
from hivemesh.model.task import Task, TaskState
from hivemesh.wire.control import AttachReply, AttachRequest, EndpointItem, Joining, PeerItem, TaskItem

FIRST, SECOND = TaskID("a" * 25), TaskID("b" * 25)


def attachable(world: World, name: str = "mynet", subnet: str = "10.9.0.0/24", *, ipv6: bool = False) -> Network:
    wanted = NetworkSpec(name=name, attachable=True, ipam=(IPAMConfig(subnet=subnet),), ipv6=ipv6)
    world.change(lambda tx: networks.create(tx, wanted, world.now, world.new_id()))
    return world.network(name)


def request(*joining: Joining | str, task: TaskID = FIRST, name: str = "c1", **fields: object) -> AttachRequest:
    found = tuple(Joining(network=one) if isinstance(one, str) else one for one in joining)
    return AttachRequest(task=task, container=name, container_id="c" * 64, networks=found, **fields)  # type: ignore[arg-type]


def attach(world: World, asked: AttachRequest, node: str = "n1") -> AttachReply:
    who = world.node(node).id
    return world.change(lambda tx: attachments.attach(tx, who, asked, world.now, world.new_id))


def test_attached_container_has_an_address_and_names_and_runs() -> None:
    world = World(2)
    network = attachable(world, ipv6=True)
    spec = ContainerSpec(hostname="box")
    reply = attach(world, request(Joining(network="mynet", aliases=("db",)), spec=spec))
    (task,) = world.tasks()
    assert (task.id, task.attachments) == (FIRST, reply.task.attachments)
    assert reply.names == ("mynet",)
    assert (task.status.state, task.node_id, task.container) == (TaskState.RUNNING, world.node("n1").id, "c1")
    (attachment,) = task.attachments
    assert [address.version for address in attachment.addresses] == [4, 6]
    assert network.id in {a.network_id for a in world.node("n1").attachments}
    here, there = (derive(world.view, world.node(name).id) for name in ("n1", "n2"))
    (endpoint,) = (item for item in here.values() if isinstance(item, EndpointItem))
    assert set(endpoint.names) == {"c1", "c" * 12, "box", "db"}
    assert here[f"task/{FIRST}"] == TaskItem(task=task)
    assert not any(isinstance(item, PeerItem) and item.network == network.id for item in there.values())
    attach(world, request("mynet", task=SECOND, name="c2"), "n2")
    there = derive(world.view, world.node("n2").id)
    assert f"peer/{network.id}/{attachment.endpoint_id}" in there


def test_asking_again_keeps_what_is_there_and_changes_what_is_not() -> None:
    world = World(1)
    attachable(world)
    other = attachable(world, "other", "10.8.0.0/24")
    first = attach(world, request("mynet")).task
    version = world.tasks()[0].version
    assert attach(world, request("mynet")).task.version == version == world.tasks()[0].version
    both = attach(world, request("mynet", "other")).task
    assert both.attachments[0] == first.attachments[0]
    assert both.attachments[1].network_id == other.id
    only = attach(world, request("other")).task
    assert only.attachments == both.attachments[1:]
    assert only.created == first.created
    assert attach(world, request()).task.attachments == ()
    assert len(world.tasks()) == 1


def test_wanted_addresses_are_given_or_refused() -> None:
    world = World(1)
    attachable(world, ipv6=True)
    prefix6 = world.network("mynet").subnets[1].prefix
    wanted = (ip_address("10.9.0.77"), prefix6.network_address + 0x77)
    task = attach(world, request(Joining(network="mynet", addresses=wanted))).task
    assert tuple(address_of(interface) for interface in task.attachments[0].addresses) == wanted
    before = world.tasks()
    for error, addresses in (
        (Conflict, wanted[:1]),
        (Conflict, (ip_address("10.9.0.1"),)),  # the gateway
        (Invalid, (ip_address("192.0.2.1"),)),
        (Invalid, (ip_address("10.9.0.8"), ip_address("10.9.0.9"))),
    ):
        with pytest.raises(error):
            attach(world, request(Joining(network="mynet", addresses=addresses), task=SECOND, name="c2"))
    assert world.tasks() == before
    moved = attach(world, request(Joining(network="mynet", addresses=(ip_address("10.9.0.78"),)))).task
    assert ip_address("10.9.0.78") in {address_of(interface) for interface in moved.attachments[0].addresses}


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (request("closed"), Forbidden, "network closed not manually attachable"),
        (request("ingress"), Forbidden, "network ingress not manually attachable"),
        (request("nosuch"), NotFound, "network nosuch not found"),
        (request("mynet", "mynet"), Invalid, "twice"),
        (request("mynet", task=TaskID("../etc")), Invalid, "invalid task"),
        (request("mynet", name=""), Invalid, "needs a name"),
        (request(Joining(network="mynet", aliases=("no name",))), Invalid, "alias of network mynet"),
        (request("mynet", spec=ContainerSpec(hostname="-x-")), Invalid, "hostname"),
        (request("mynet", spec=ContainerSpec(dns_config=DNSConfig(nameservers=("x",)))), Invalid, "nameserver|DNS"),
        (
            request("mynet", ports=(publish(8080, mode="host"),)),
            Conflict,
            "8080/tcp is already published by service web",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    asked: AttachRequest, error: type[HivemeshError], words: str
) -> None:
    world = World(1)
    attachable(world)
    world.create_network("closed")
    world.create(spec("web", 0, ports=[publish(8080)]))
    with pytest.raises(error, match=words):
        attach(world, asked)
    assert world.tasks() == []


def test_a_check_grants_nothing() -> None:
    world = World(1)
    attachable(world)
    reply = attach(world, request("mynet", check=True))
    assert reply.names == ("mynet",)
    assert world.tasks() == []
    assert first_v4(attach(world, request("mynet")).task.attachments[0].addresses) == ip_address("10.9.0.2")
    with pytest.raises(Forbidden):
        attach(world, request("ingress", check=True))


def test_ports_of_the_node_are_kept_apart() -> None:
    world = World(2)
    attachable(world)
    port = PortConfig(target_port=80, published_port=8080, publish_mode="host")
    attach(world, request("mynet", ports=(port,)))
    with pytest.raises(Conflict, match="8080/tcp is already published on this node by c1"):
        attach(world, request("mynet", task=SECOND, name="c2", ports=(port,)))
    attach(world, request("mynet", task=SECOND, name="c2", ports=(port,)), "n2")


def test_exhausted_subnet_refuses_and_serves_again_once_an_address_is_free() -> None:
    world = World(1)
    attachable(world, subnet="10.9.0.0/29")  # a gateway, the node's own address, and four for containers
    ids = [TaskID(letter * 25) for letter in "cdef"]
    for number, identifier in enumerate(ids):
        attach(world, request("mynet", task=identifier, name=f"c{number}"))
    with pytest.raises(Exhausted, match="network mynet: no free address"):
        attach(world, request("mynet", task=SECOND, name="late"))
    world.change(lambda tx: attachments.detach(tx, world.node("n1").id, ids[0]))
    attach(world, request("mynet", task=SECOND, name="late"))


def test_only_its_own_node_may_touch_a_container() -> None:
    world = World(2)
    attachable(world)
    attach(world, request("mynet"))
    with pytest.raises(Conflict):
        attach(world, request("mynet"), "n2")
    other, own = world.node("n2").id, world.node("n1").id
    with pytest.raises(Forbidden):
        world.change(lambda tx: attachments.detach(tx, other, FIRST))
    service = world.create(spec("web"))
    (task,) = world.tasks("web")
    assert task.node_id is not None
    with pytest.raises(Forbidden):
        world.change(lambda tx: attachments.detach(tx, task.node_id or own, task.id))
    world.change(lambda tx: attachments.detach(tx, own, FIRST))
    world.change(lambda tx: attachments.detach(tx, own, FIRST))
    assert [task.service_id for task in world.tasks()] == [service.id]


def test_container_holds_its_network_and_goes_with_its_node() -> None:
    world = World(2)
    attachable(world)
    attach(world, request("mynet"), "n2")
    with pytest.raises(Invalid, match="in use by task"):
        world.change(lambda tx: networks.remove(tx, "mynet"))
    world.set_spec("n2", availability="drain")
    world.set_node("n2", state="down")
    assert [task.status.state for task in world.tasks()] == [TaskState.RUNNING]  # the user's, not ours to move
    world.change(lambda tx: nodes.remove(tx, "n2", force=True))
    assert world.tasks() == []
    world.change(lambda tx: networks.remove(tx, "mynet"))


async def test_member_attaches_and_detaches_over_the_cluster_port(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        network = attachable(World(1))
        await swarm.tables.update(lambda tx: tx.put(network))
        identity = agent.session.identity
        reply = await membership.attach(identity, request(network.id))
        assert reply.task.node_id == agent.node
        await eventually(lambda: f"task/{FIRST}" in agent.session.view)
        with pytest.raises(NotFound, match="network nosuch not found"):
            await membership.attach(identity, request("nosuch"))
        await membership.detach(identity, FIRST)
        assert swarm.tables.view.get(Task, FIRST) is None
