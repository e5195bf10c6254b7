"""What IPVS is asked to do, and what the rules in front of it say."""

import ipaddress
from socket import AF_INET, AF_INET6

import pytest

from hivemesh.dataplane.balancer.api import Part, Published, Target
from hivemesh.dataplane.balancer.engines import Engine
from hivemesh.dataplane.balancer.ipvs import Ipvs, port_mark
from hivemesh.dataplane.plan.balancing import mesh_part, vip_part
from hivemesh.kernel.api import VirtualService
from hivemesh.model.ids import NetworkID, ServiceID, TaskID
from hivemesh.model.service import Balance, Scheduler
from hivemesh.wire.control import Backend, PublishItem, ServiceItem
from hivemesh.wire.nft import host_u32, protocol_port


def backend(last: int, weight: int = 1) -> Backend:
    addresses = (ipaddress.ip_address(f"10.0.1.{last}"), ipaddress.ip_address(f"fd10::1:{last}"))
    return Backend(task=TaskID(f"t{last}"), addresses=addresses, weight=weight)


def service(*backends: Backend, scheduler: Scheduler = "rr", last: int = 5, engine: Engine = "ipvs") -> ServiceItem:
    return ServiceItem(
        network=NetworkID("net"),
        service=ServiceID(f"service{last}"),
        name="web",
        vips=(ipaddress.ip_address(f"10.0.1.{last}"), ipaddress.ip_address(f"fd10::{last}")),
        balance=Balance(scheduler=scheduler, engine=engine),
        backends=backends,
    )


def publish(port: int, *backends: Backend, engine: Engine = "ipvs") -> PublishItem:
    return PublishItem(
        service=ServiceID("web"),
        service_name="web",
        protocol="tcp",
        port=port,
        backends=backends,
        balance=Balance(engine=engine),
    )


def mesh(*items: PublishItem, lacks_ipvs: bool = False) -> Part:
    return mesh_part(items, "nftables", outside="eth1", overlay="eth0", lacks_ipvs=lacks_ipvs)


def elements(part: Part, name: str) -> dict[bytes, object]:
    (table,) = [table for table in part.tables if table.name == "hivemesh-ipvs"]
    (found,) = [each.elements for each in table.maps if each.name == name]
    return dict(found)


def weights(found: VirtualService) -> list[tuple[str, int]]:
    return [(str(d.address), d.weight) for d in found.destinations]


def test_published_port_is_one_service_per_family_behind_one_mark() -> None:
    part = mesh(publish(8080, backend(2), backend(3, weight=4)))
    mark = port_mark("tcp", 8080)
    assert elements(part, "ports") == {protocol_port("tcp", 8080): host_u32(mark)}
    assert [(s.family, s.mark, s.scheduler, s.linger) for s in part.ipvs] == [
        (AF_INET, mark, "wrr", True),
        (AF_INET6, mark, "wrr", True),
    ]
    assert weights(part.ipvs[0]) == [("10.0.1.2", 1), ("10.0.1.3", 4)]


def test_udp_destinations_do_not_linger() -> None:
    port = Published(
        service=ServiceID("dns"),
        name="dns",
        scheduler="rr",
        targets=(Target(address=ipaddress.ip_address("10.0.0.7"), weight=1),),
        protocol="udp",
        port=53,
    )
    assert [s.linger for s in Ipvs().mesh([port], outside="eth1", overlay="eth0").ipvs] == [False]
    part = vip_part([service(backend(2))], "nftables")
    assert sorted((s.family, s.linger) for s in part.ipvs) == [
        (AF_INET, False),
        (AF_INET, True),
        (AF_INET6, False),
        (AF_INET6, True),
    ]


def test_marks_of_all_entries_differ_and_do_not_depend_on_the_others() -> None:
    alone = vip_part([service(backend(2), last=9)], "nftables").ipvs
    many = vip_part([service(backend(2), last=n) for n in range(5, 250)], "nftables").ipvs
    assert len({(s.family, s.mark) for s in many}) == len(many) == 245 * 4
    assert set(alone) <= set(many)


@pytest.mark.parametrize("backends", [(), (backend(2, weight=0),)], ids=["none", "only-weight-0"])
def test_entry_without_targets_marks_nothing_and_keeps_who_drains(backends: tuple[Backend, ...]) -> None:
    part = vip_part([service(*backends)], "nftables")
    assert set(elements(part, "streams4").values()) == {host_u32(0)}
    assert elements(part, "first4") == {}
    assert {weight for s in part.ipvs for _, weight in weights(s)} <= {0}
    ports = mesh(publish(80, *backends))
    assert set(elements(ports, "ports").values()) == {host_u32(0)}


@pytest.mark.parametrize(
    ("scheduler", "kernels", "flags"), [("rr", "wrr", 0), ("lc", "wlc", 0), ("source", "sh", 8), ("maglev", "mh", 8)]
)
def test_scheduler_has_the_kernels_name(scheduler: Scheduler, kernels: str, flags: int) -> None:
    part = vip_part([service(backend(2), scheduler=scheduler)], "nftables")
    assert {(s.scheduler, s.flags) for s in part.ipvs} == {(kernels, flags)}


def test_one_namespace_may_have_services_of_both_engines() -> None:
    part = vip_part([service(backend(2)), service(backend(3), last=6, engine="nftables")], "nftables")
    assert {table.name for table in part.tables} == {"hivemesh-ipvs", "hivemesh-vips"}
    assert ipaddress.ip_address("10.0.1.6").packed not in elements(part, "streams4")


def test_node_whose_kernel_lacks_ipvs_balances_with_nftables() -> None:
    part = mesh(publish(8080, backend(2)), lacks_ipvs=True)
    assert part.ipvs == ()
    assert [table.name for table in part.tables] == ["hivemesh"]
    assert vip_part([service(backend(2))], "ipvs", lacks_ipvs=True).ipvs == ()


def test_node_without_ipvs_services_has_nothing_of_it() -> None:
    part = mesh(publish(8080, backend(2), engine="nftables"))
    assert (part.ipvs, dict(part.sysctls), len(part.tables)) == ((), {}, 1)
