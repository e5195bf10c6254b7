"""Facts from what a machine shows."""

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import cast

import pytest

from hivemesh.agent.facts import GATEWAY_POOL, describe, host_facts
from hivemesh.engine.api import Engine as ContainerEngine
from hivemesh.engine.api import EngineInfo
from hivemesh.kernel.machine import HostAddress, learning_links, routes
from hivemesh.model.errors import Unavailable
from hivemesh.model.generic import parse

MACHINE = [
    HostAddress("lo", 65536, ip_interface("127.0.0.1/8")),
    HostAddress("eth0", 1400, ip_interface("192.0.2.2/24")),
    HostAddress("eth0", 1400, ip_interface("fe80::1/64")),
    HostAddress("eth0", 1400, ip_interface("fd00::2/64")),
    HostAddress("eth1", 9000, ip_interface("198.51.100.2/24")),
]


def test_node_shows_both_families_of_the_underlays_interface() -> None:
    for vtep in ("192.0.2.2", "fd00::2"):
        facts = host_facts(ip_address(vtep), MACHINE, [], [])
        assert (str(facts.node_v4), str(facts.node_v6), facts.vtep_mtu) == ("192.0.2.2", "fd00::2", 1400)


def test_interface_of_one_family_leaves_the_other_open() -> None:
    facts = host_facts(ip_address("198.51.100.2"), MACHINE, [], [])
    assert (str(facts.node_v4), facts.node_v6, facts.vtep_mtu) == ("198.51.100.2", None, 9000)


def test_lost_data_path_address_is_said() -> None:
    with pytest.raises(Unavailable, match=r"192\.0\.2\.9"):
        host_facts(ip_address("192.0.2.9"), MACHINE, [], [])


@pytest.mark.parametrize(
    ("routes", "gateway"),
    [
        (["0.0.0.0/0", "::/0"], "172.18.0.1/16"),
        (["172.18.4.0/24"], "172.19.0.1/16"),
        (["172.16.0.0/12"], "192.168.0.1/20"),
    ],
)
def test_gateway_bridge_takes_the_first_free_subnet(routes: list[str], gateway: str) -> None:
    facts = host_facts(ip_address("192.0.2.2"), MACHINE, list(map(ip_network, routes)), [])
    assert str(facts.gateway4) == gateway
    assert facts.gateway6.ip in ip_network("fd00::/8")


def test_gateway_bridge_keeps_what_it_has() -> None:
    bridge = [
        HostAddress("hm_gwbridge", 1500, ip_interface("10.9.9.1/24")),
        HostAddress("hm_gwbridge", 1500, ip_interface("fd00:9::1/64")),
    ]
    facts = host_facts(ip_address("192.0.2.2"), MACHINE + bridge, [ip_network("172.16.0.0/12")], [])
    assert (str(facts.gateway4), str(facts.gateway6)) == ("10.9.9.1/24", "fd00:9::1/64")


def test_machine_without_a_free_subnet_is_told() -> None:
    with pytest.raises(Unavailable, match="no free subnet"):
        host_facts(ip_address("192.0.2.2"), MACHINE, GATEWAY_POOL, [])


def test_routing_tables_are_read_as_the_kernel_prints_them(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    (tmp_path / "ipv6_route").write_text(
        "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000"
        " 00000100 00000001 00000000 00040001     eth0\n"
    )
    assert [(link, str(prefix)) for link, prefix in routes(tmp_path)] == [
        ("eth0", "0.0.0.0/0"), ("eth0", "192.0.2.0/24"), ("eth0", "fd00::/64"),
    ]  # fmt: skip
    (tmp_path / "eth0").mkdir()
    (tmp_path / "eth0" / "accept_ra").write_text("1\n")
    assert learning_links(tmp_path, tmp_path) == ["eth0"]
    (tmp_path / "eth0" / "accept_ra").write_text("0\n")
    assert learning_links(tmp_path, tmp_path) == []


def test_machine_without_ipv6_has_its_other_routes(tmp_path: Path) -> None:
    (tmp_path / "route").write_text("Iface\tDestination\n")
    assert routes(tmp_path) == []


class Engine:
    """Knows who it is, which is all that is asked of it here."""

    async def info(self) -> EngineInfo:
        return EngineInfo(name="podman", version="4.3.1")


async def test_managers_are_told_what_the_node_was_started_with() -> None:
    generic = parse(["GPU=a", "SSD=3"])
    engine = cast(ContainerEngine, Engine())
    about = await describe(engine, ip_address("192.0.2.9"), "n1", {"disk": "ssd"}, generic)
    assert (about.hostname, about.labels, about.generic) == ("n1", {"disk": "ssd"}, generic)
    assert (about.engine, about.mtu) == ("podman 4.3.1", 1500)
    assert about.nano_cpus >= 1_000_000_000
