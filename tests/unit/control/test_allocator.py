"""Subnets, VNIs, addresses, VIPs and ports: granted, kept, freed, exhausted."""

from ipaddress import ip_address, ip_network

import pytest
from world import World, publish, spec

from hivemesh.control import networks
from hivemesh.control.grants import Grants
from hivemesh.model.addr import first_v4, first_v6, mac_of
from hivemesh.model.errors import Conflict, Invalid
from hivemesh.model.service import RestartPolicy
from hivemesh.model.task import TaskState


def test_a_new_swarm_has_its_ingress_network() -> None:
    world = World(2)
    ingress = world.network("ingress")
    assert ingress.vni == 4096
    assert str(ingress.subnets[0].prefix) == "10.0.0.0/24"
    prefix6 = ingress.subnets[1].prefix
    assert prefix6.prefixlen == 64
    assert ip_network("fd00::/8").supernet_of(prefix6)  # type: ignore[arg-type]
    for number, name in ((2, "n1"), (3, "n2")):
        (attachment,) = world.node(name).attachments
        assert attachment.network_id == ingress.id
        assert first_v4(attachment.addresses) == ip_address(f"10.0.0.{number}")
        assert first_v6(attachment.addresses) == prefix6.network_address + number
        assert attachment.mac == f"02:42:0a:00:00:0{number}"


def test_networks_get_the_next_subnet_and_vni() -> None:
    world = World()
    assert [str(world.create_network("a").subnets[0].prefix), world.network("a").vni] == ["10.0.1.0/24", 4097]
    assert len(world.network("a").subnets) == 1
    given = world.create_network("b", "172.30.0.0/16", "fd12::/64")
    assert [str(subnet.prefix) for subnet in given.subnets] == ["172.30.0.0/16", "fd12::/64"]
    assert [str(subnet.gateway) for subnet in given.subnets] == ["172.30.0.1", "fd12::1"]
    both = world.create_network("c", ipv6=True)
    assert str(both.subnets[0].prefix) == "10.0.2.0/24"
    assert both.subnets[1].prefix != world.network("ingress").subnets[1].prefix
    world.change(lambda tx: tx.delete(both))
    again = world.create_network("d")
    assert (str(again.subnets[0].prefix), again.vni) == ("10.0.2.0/24", 4100)


def test_subnets_stay_clear_of_the_nodes_own_addresses() -> None:
    world = World(2, pools=("198.51.100.0/24",), subnet_size=28)
    assert str(world.network("ingress").subnets[0].prefix) == "198.51.100.16/28"


def test_tasks_have_ingress_first_then_networks_as_listed() -> None:
    world = World()
    back, front = world.create_network("back", ipv6=True), world.create_network("front")
    service = world.create(spec(replicas=2, ports=[publish(8090)], networks=["front", "back"]))
    order = [world.network("ingress").id, front.id, back.id]
    assert [vip.network_id for vip in service.vips] == order
    for task in world.tasks("web"):
        assert [attachment.network_id for attachment in task.attachments] == order
        assert [len(attachment.addresses) for attachment in task.attachments] == [2, 1, 2]
        for attachment in task.attachments:
            address = first_v4(attachment.addresses)
            assert address is not None
            assert attachment.mac == mac_of(address)
    host = world.create(spec("host", ports=[publish(9000, mode="host")]))
    assert host.vips == ()
    assert world.tasks("host")[0].attachments == ()


def test_nodes_join_networks_with_their_tasks_and_leave_with_them() -> None:
    world = World(2)
    front = world.create_network("front")
    world.create(spec(networks=["front"]))
    world.agents()
    (task,) = world.tasks("web")
    joined = [node for node in world.view.all(type(world.node("n1"))) if len(node.attachments) == 2]
    assert [node.id for node in joined] == [task.node_id]
    assert joined[0].attachments[1].network_id == front.id
    world.remove("web")
    assert len(world.node(joined[0].id).attachments) == 2  # the task still runs
    world.agents()
    assert len(world.node(joined[0].id).attachments) == 1


def test_addresses_are_kept_until_the_task_is_seen_dead_and_not_given_again_at_once() -> None:
    world = World()
    world.create(spec(ports=[publish(8090)], restart=RestartPolicy(delay=0)))
    world.agents()
    seen = []
    for _ in range(5):
        (task,) = world.wanted("web")
        seen.append(first_v4(task.attachments[0].addresses))
        world.report(task, TaskState.RUNNING)
        world.report(task, TaskState.FAILED)
    assert len(set(seen)) == 5


def test_addresses_ports_and_vnis_go_on_after_the_last_given_though_nothing_of_it_is_left() -> None:
    """All is in the store: whichever manager is asked next, it knows."""
    world = World()
    world.create_network("front", "10.9.0.0/24")

    def serve(name: str) -> tuple[object, ...]:
        service = world.create(spec(name, networks=["front"], ports=[publish(0)]))
        (task,) = world.tasks(name)
        return service.ports[0].published_port, *(first_v4(a.addresses) for a in task.attachments)

    first = serve("web")
    world.remove("web")
    world.agents()
    assert not world.tasks()
    second = serve("other")
    assert all(later > earlier for earlier, later in zip(first, second, strict=True))  # type: ignore[operator]
    vnis = []
    for name in ("a", "b"):
        vnis.append(world.create_network(name).vni)
        world.change(lambda tx, name=name: networks.remove(tx, name))  # type: ignore[misc]
    assert vnis[0] != vnis[1]


def test_exhaustion_is_shown_by_the_task_and_ends_with_room() -> None:
    world = World(2, pools=("10.0.0.0/28",), subnet_size=29)
    world.create(spec(replicas=2, ports=[publish(8090)]))  # two nodes, a VIP, two tasks: full
    world.agents()
    world.create(spec("more", ports=[publish(8091)]))
    assert world.service("more").error == "network ingress: no free address in 10.0.0.0/29"
    (stuck,) = world.tasks("more")
    assert stuck.status.state == TaskState.NEW
    assert stuck.status.err == "network ingress: no free address in 10.0.0.0/29"
    assert world.at_rest()
    world.remove("web")
    world.agents()
    world.agents()
    served = world.task(stuck)
    assert served.serving
    assert served.status.err == ""
    assert world.service("more").error == ""


def test_a_service_half_exhausted_runs_what_fits() -> None:
    world = World(1, pools=("10.0.0.0/28",), subnet_size=29)
    world.create(spec(replicas=5, ports=[publish(8090)]))
    states = [task.status.state for task in world.tasks("web")]
    assert states.count(TaskState.ASSIGNED) == 3
    assert {task.status.err for task in world.tasks("web") if task.status.state == TaskState.NEW} == {
        "network ingress: no free address in 10.0.0.0/29"
    }
    world.update("web", spec(replicas=3, ports=[publish(8090)]))
    assert all(task.status.state == TaskState.ASSIGNED for task in world.wanted("web"))


def test_pools_without_a_subnet_left_are_an_error_of_the_network() -> None:
    world = World(1, pools=("10.0.0.0/24",))
    network = world.create_network("a")
    assert network.error == "network a: no free /24 subnet is left in the address pools (10.0.0.0/24)"
    world.create(spec(networks=["a"]))
    assert world.tasks("web")[0].status.err == network.error


def test_dynamic_ports_are_chosen_once_and_stay() -> None:
    world = World()
    first = world.create(spec("a", ports=[publish(0), publish(0, 53, protocol="udp")]))
    assert [port.published_port for port in first.ports] == [30000, 30001]
    second = world.create(spec("b", ports=[publish(0), publish(30002, 81)]))
    assert [port.published_port for port in second.ports] == [30003, 30002]
    kept = world.update("a", spec("a", 3, image="new", ports=[publish(0, 81), publish(0)]))
    assert [port.published_port for port in kept.ports] == [30004, 30000]
    world.remove("b")
    third = world.create(spec("c", ports=[publish(0)]))
    assert third.ports[0].published_port == 30005


def test_host_ports_without_a_number_stay_open() -> None:
    world = World()
    assert world.create(spec(ports=[publish(0, mode="host")])).ports[0].published_port == 0


def test_vips_are_kept_over_updates_and_freed_by_dnsrr() -> None:
    world = World()
    world.create_network("front")
    world.create_network("back")
    before = world.create(spec(networks=["front"]))
    after = world.update("web", spec(networks=["back", "front"], image="new"))
    assert after.vips[1] == before.vips[0]
    assert world.update("web", spec(networks=["back"])).vips == after.vips[:1]
    assert world.update("web", spec(networks=["back"], mode="dnsrr")).vips == ()


def test_switching_to_names_without_vip_and_back_keeps_the_tasks() -> None:
    world = World()
    world.create_network("front", ipv6=True)
    world.create(spec(networks=["front"], replicas=2))
    world.agents()
    before = world.tasks("web")
    assert world.update("web", spec(networks=["front"], replicas=2, mode="dnsrr")).vips == ()
    (vip,) = world.update("web", spec(networks=["front"], replicas=2)).vips
    assert len(vip.addresses) == 2
    assert world.tasks("web") == before
    taken = {address for task in before for attachment in task.attachments for address in attachment.addresses}
    assert not taken & set(vip.addresses)


def test_vip_given_up_for_names_serves_a_task_that_waits() -> None:
    """Of the five addresses of a /29 one is the VIP."""
    world = World(1)
    world.create_network("small", "10.9.0.0/29")
    world.create(spec(networks=["small"], replicas=5))
    world.agents()
    stuck = "network small: no free address in 10.9.0.0/29"
    assert [task.status.err for task in world.tasks("web")] == ["", "", "", "", stuck]
    assert world.at_rest()
    world.update("web", spec(networks=["small"], replicas=5, mode="dnsrr"))
    world.agents()
    assert all(task.serving and not task.status.err for task in world.tasks("web"))


def test_service_gives_up_vips_it_needs_no_more_though_it_cannot_have_others() -> None:
    world = World(1)
    world.create_network("full", "10.9.0.0/29")
    world.create_network("free")
    world.create(spec("filler", networks=["full"], replicas=4))
    world.agents()
    world.create(spec(networks=["free"]))
    stuck = world.update("web", spec(networks=["full"]))
    assert stuck.vips == ()
    assert stuck.error == "network full: no free address in 10.9.0.0/29"
    assert {task.status.err for task in world.wanted("web")} == {stuck.error}
    assert world.at_rest()
    world.update("filler", spec("filler", networks=["full"], replicas=1))
    for _ in range(3):
        world.agents()
    assert world.service("web").error == ""
    assert [task.serving for task in world.wanted("web")] == [True]


def test_wanted_address_is_granted_unless_held_reserved_or_elsewhere() -> None:
    world = World(1)
    network = world.create_network("front", "10.9.0.0/24", "fd09::/64")
    world.create(spec(networks=["front"]))
    (task,) = world.tasks("web")
    held = first_v4(task.attachments[0].addresses)
    assert held is not None
    grants = Grants(world.view, world.new_id)
    given = grants.attachment(network, (ip_address("10.9.0.77"),))
    assert first_v4(given.addresses) == ip_address("10.9.0.77")
    assert first_v6(given.addresses) is not None
    assert given.mac == "02:42:0a:09:00:4d"
    for taken in (
        held,
        ip_address("10.9.0.77"),
        ip_address("10.9.0.1"),
        ip_address("10.9.0.255"),
        ip_address("fd09::1"),
    ):
        with pytest.raises(Conflict, match=f"network front: address {taken} is already in use or reserved"):
            grants.attachment(network, (taken,))
    with pytest.raises(Invalid, match=r"10\.8\.0\.1: It does not belong to network front"):
        grants.attachment(network, (ip_address("10.8.0.1"),))
    grants.release(network.id, given.addresses)
    assert grants.attachment(network, (ip_address("10.9.0.77"),)).mac == given.mac


def test_an_ingress_network_of_the_users_own_replaces_the_first() -> None:
    world = World()
    ingress = world.network("ingress")
    world.change(lambda tx: tx.delete(ingress))
    assert world.node("n1").attachments == ()
    mine = world.create_network("mine", "10.50.0.0/16", ingress=True)
    assert world.create(spec(ports=[publish(8090)])).vips[0].network_id == mine.id
    assert {node.attachments[0].network_id for node in map(world.node, ("n1", "n2", "n3"))} == {mine.id}
