"""Networks as a node that is no manager knows them."""

from world import World, spec

from hivemesh.agent.inquiry import known
from hivemesh.control.views import derive
from hivemesh.wire.control import View
from hivemesh.wire.insight import Insight, Member


def world_with_names() -> World:
    world = World(3)
    world.create_network("front", "10.9.0.0/24", ipv6=True)
    world.create(spec(replicas=2, networks=["front"], constraints=["node.hostname!=n3"]))
    world.create(spec("names", networks=["front"], mode="dnsrr", constraints=["node.hostname==n2"]))
    world.attach("c1", "front", "n2")
    world.agents()
    return world


def view_of(world: World, name: str) -> View:
    return derive(world.view, world.node(name).id)


def told(world: World, name: str, reference: str) -> Insight | None:
    node = world.node(name)
    assert node.vtep is not None
    return known(view_of(world, name), reference, node.id, node.vtep)


def facts(member: Member) -> tuple[object, ...]:
    return (
        member.name, member.endpoint, member.addresses, member.mac, member.service, member.node, member.host,
        member.running, member.serving,
    )  # fmt: skip


def test_node_on_the_network_knows_what_managers_would_tell() -> None:
    world = world_with_names()
    front = world.network("front")
    for node in ("n1", "n2"):
        mine, theirs = told(world, node, "front"), world.insight("front")
        assert mine is not None
        assert {(host.id, host.vtep) for host in mine.hosts} == {(host.id, host.vtep) for host in theirs.hosts}
        assert {(offer.name, offer.vips) for offer in mine.services} == {(o.name, o.vips) for o in theirs.services}
        expected = {facts(member) for member in theirs.members}
        if node == "n1":  # where it itself is, managers say by the address they see
            assert world.node("n1").addr == str(world.node("n1").vtep)
        assert {facts(member) for member in mine.members} == expected
        assert [usage.subnet for usage in mine.usage] == [usage.subnet for usage in theirs.usage]
        # What nodes merely reserve is known to managers alone
        assert mine.usage[0].in_use == theirs.usage[0].in_use - 2 + (mine.hosts[0].own is not None)
        assert (mine.network.id, mine.network.vni, mine.network.subnets) == (front.id, front.vni, front.subnets)
        assert mine.network.spec.ipv6


def test_networks_are_found_by_id_name_and_beginning() -> None:
    world = world_with_names()
    front = world.network("front")
    for reference in (front.id, "front", front.id[:25]):
        found = told(world, "n1", reference)
        assert found is not None
        assert found.network.id == front.id
    assert told(world, "n1", "nowhere") is None
    assert told(world, "n1", "") is None
    assert told(world, "n3", "front") is None
    ingress = told(world, "n3", "ingress")
    assert ingress is not None
    assert ingress.network.spec.ingress
