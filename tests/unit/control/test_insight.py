"""What managers tell of networks."""

from world import World, publish, spec

from hivemesh.model.ids import ServiceID
from hivemesh.model.task import TaskState
from hivemesh.wire import codec
from hivemesh.wire.insight import Insight


def test_network_shows_nodes_services_members_and_what_is_left_of_its_addresses() -> None:
    world = World(2)
    front = world.create_network("front", "10.9.0.0/24", ipv6=True)
    web = world.create(spec(replicas=2, networks=["front"], ports=[publish(8080)]))
    world.create(spec("names", networks=["front"], mode="dnsrr"))
    world.create(spec("elsewhere"))
    place = world.attach("c1", "front", "n2")
    world.agents()
    about = next(about for about in world.insights() if about.network.id == front.id)
    assert about.network == front
    assert {host.name for host in about.hosts} == {"n1", "n2"}
    assert [(offer.name, len(offer.vips)) for offer in about.services] == [("names", 0), ("web", 2)]
    assert about.services[1].ports == web.ports
    detail = world.insight("front")
    assert (detail.hosts, detail.services) == (about.hosts, about.services)
    assert [(member.name, member.service) for member in detail.members if member.service in ("", web.id)] == [
        ("c1", ServiceID("")),
        *((task.name, web.id) for task in world.tasks("web")),
    ]
    assert len(detail.members) == 4
    assert all(member.running and member.serving and member.host for member in detail.members)
    v4, v6 = detail.usage
    # Network, broadcast, gateway; two nodes, a VIP, four endpoints
    assert (v4.subnet, v4.in_use, v4.free) == ("10.9.0.0/24", 3 + 2 + 1 + 4, 253 - 7)
    assert (v6.in_use, v6.free) == (2 + 7, 2**64 - 2 - 7)
    world.change(lambda tx: tx.delete(place))
    assert world.insight("front").usage[0].in_use == v4.in_use - 1


def test_task_that_stops_holds_its_address_and_serves_nobody() -> None:
    world = World(1)
    world.create_network("front")
    world.create(spec(networks=["front"]))
    world.agents()
    world.update("web", spec(networks=["front"], replicas=0))
    (member,) = world.insight("front").members
    assert (member.running, member.serving) == (True, False)
    world.agents()
    assert world.insight("front").members == ()


def test_task_kept_as_history_is_no_member() -> None:
    world = World(1)
    world.create_network("front")
    world.create(spec(networks=["front"]))
    world.agents()
    (failed,) = world.tasks("web")
    world.report(failed, TaskState.FAILED)
    assert failed.id in {task.id for task in world.tasks("web")}
    assert [member.name for member in world.insight("front").members] == [
        task.name for task in world.tasks("web") if task.id != failed.id
    ]


def test_ingress_shows_the_services_that_publish() -> None:
    world = World(1)
    world.create(spec(ports=[publish(8080)]))
    world.create(spec("host", ports=[publish(9000, mode="host")]))
    detail = world.insight("ingress")
    assert [offer.name for offer in detail.services] == ["web"]
    assert [host.name for host in detail.hosts] == ["n1"]
    assert detail.members[0].running is (world.tasks("web")[0].status.state == TaskState.RUNNING)


def test_more_free_addresses_than_64_bits_count_are_told_as_the_most() -> None:
    world = World(1)
    world.create_network("huge", "fd09::/32")
    assert world.insight("huge").usage[1].free == 2**64 - 1
    assert codec.from_json(codec.to_json(world.insight("huge")), Insight) == world.insight("huge")


def test_addresses_that_are_set_aside_are_nobodys_and_not_the_gateways() -> None:
    world = World(1)
    world.create_network("front", "10.9.0.0/29", aside={"router": "10.9.0.1", "printer": "10.9.0.3"})
    assert str(world.network("front").subnets[0].gateway) == "10.9.0.2"
    assert [(usage.in_use, usage.free) for usage in world.insight("front").usage] == [(5, 3)]
    world.create(spec(networks=["front"]))
    world.agents()
    given = {str(address) for member in world.insight("front").members for address in member.addresses}
    assert given <= {f"10.9.0.{last}/29" for last in (4, 5, 6)}
    assert given


def test_range_of_a_subnet_limits_what_is_free() -> None:
    world = World(1)
    world.create_network("front", "10.9.0.0/24", ip_range="10.9.0.128/29")
    assert [(usage.in_use, usage.free) for usage in world.insight("front").usage] == [(3, 8)]
    world.create(spec(networks=["front"]))
    world.agents()
    assert [(usage.in_use, usage.free) for usage in world.insight("front").usage] == [(6, 5)]
