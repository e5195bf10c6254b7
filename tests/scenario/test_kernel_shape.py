"""What the kernel of a node holds, under the names that the design gives, read with `ip`, `bridge` and `nft`."""

import json
import shutil
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

import pytest
from outside import (
    PORT,
    SERVICE,
    as_json,
    cli,
    curl,
    eventually,
    ingress_id,
    inside,
    namespaces,
    overlay_of,
    start_service,
)

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario


def details(node: Node, namespace: str, link: str) -> dict[str, Any]:
    (found,) = as_json(node, namespace, "ip", "-j", "-d", "link", "show", link)
    return dict(found)


def addresses(node: Node, namespace: str, link: str) -> list[str]:
    (found,) = as_json(node, namespace, "ip", "-j", "addr", "show", link)
    return [one["local"] for one in found["addr_info"] if one["scope"] == "global"]


def gateways(lab: Lab, network: str) -> set[str]:
    found = lab.nodes[0].api("GET", f"/networks/{network}")
    return {config["Gateway"] for config in found["IPAM"]["Config"]}


def test_overlay_has_a_bridge_and_a_vxlan_port_that_never_learns(lab: Lab) -> None:
    running = start_service(lab, replicas=3)
    network = ingress_id(lab)
    everywhere = {node.name: ingress_endpoints(lab, node) for node in lab.nodes}
    for node in lab.nodes:
        space = overlay_of(node, network)
        assert space in namespaces(node)
        bridge, port = details(node, space, "br0"), details(node, space, "vxlan0")
        assert bridge["linkinfo"]["info_kind"] == "bridge"
        assert set(addresses(node, space, "br0")) == gateways(lab, network)
        vxlan = port["linkinfo"]["info_data"]
        assert (vxlan["id"], vxlan["port"], vxlan["learning"]) == (4096, 4789, False)
        assert vxlan["local"] == str(node.spec.v4.ip)
        assert (port["master"], port["mtu"], bridge["mtu"]) == ("br0", 1450, 1450)

        remote = [end for other in lab.nodes if other is not node for end in everywhere[other.name]]
        vteps = {other.name: str(other.spec.v4.ip) for other in lab.nodes}
        fdb = [e for e in as_json(node, space, "bridge", "-j", "fdb", "show", "dev", "vxlan0") if "dst" in e]
        assert {(e["mac"], e["dst"]) for e in fdb} == {(mac, vteps[owner]) for owner, mac, _ in remote}
        assert all("permanent" in e.get("flags", ()) or e.get("state") == "permanent" for e in fdb)
        neighbors = as_json(node, space, "ip", "-j", "neigh", "show", "dev", "vxlan0", "nud", "permanent")
        assert {(n["dst"], n["lladdr"]) for n in neighbors} == {(ip, mac) for _, mac, ips in remote for ip in ips}
        # one veth per local endpoint: the ingress sandbox and the node's task
        ports = {link["ifname"] for link in as_json(node, space, "ip", "-j", "link", "show", "master", "br0")}
        assert len(ports - {"vxlan0"}) == 2
        assert all(name.startswith("veth") for name in ports - {"vxlan0"})
    assert {task.node for task in running} == {"n1", "n2", "n3"}


def ingress_endpoints(lab: Lab, node: Node) -> list[tuple[str, str, tuple[str, ...]]]:
    """Owner, MAC and addresses of each endpoint of a node on ingress, as its sandboxes have them."""
    found = []
    for space in namespaces(node):
        if space.startswith("1-"):
            continue
        link = details(node, space, "eth0")
        found.append((node.name, link["address"], tuple(addresses(node, space, "eth0"))))
    return found


def test_ingress_sandbox_has_eth0_on_ingress_and_eth1_on_the_gateway_bridge(lab: Lab) -> None:
    subnets = [ip_network(c["Subnet"]) for c in lab.nodes[0].api("GET", "/networks/ingress")["IPAM"]["Config"]]
    for node in lab.nodes:
        assert {link["ifname"] for link in as_json(node, "ingress_sbox", "ip", "-j", "link")} == {"lo", "eth0", "eth1"}
        on_ingress = [ip_address(text) for text in addresses(node, "ingress_sbox", "eth0")]
        assert {address.version for address in on_ingress} == {4, 6}
        assert all(any(address in subnet for subnet in subnets) for address in on_ingress)
        assert "172.18.0.2" in addresses(node, "ingress_sbox", "eth1")
        bridge = details(node, "", "hm_gwbridge")
        assert bridge["linkinfo"]["info_kind"] == "bridge"
        assert "172.18.0.1" in addresses(node, "", "hm_gwbridge")
        assert details(node, "", "hm-ve-ingress")["master"] == "hm_gwbridge"
        assert "default via 172.18.0.1 dev eth1" in inside(node, "ingress_sbox", "ip", "route")


@pytest.mark.parametrize("published", [True, False])
def test_task_has_its_interfaces_in_the_fixed_order(lab: Lab, published: bool) -> None:
    first = lab.nodes[0]
    for name, subnet in (("back", "10.71.0.0/24"), ("also", "10.72.0.0/24")):
        cli(first, "hivemesh", "network", "create", "--driver", "overlay", "--subnet", subnet, name)
    (task,) = start_service(lab, "--network", "also", "--network", "back", replicas=1, port=PORT if published else 0)
    node, space = lab.node(task.node), task.id[:12]
    ingress = IPv4Network(lab.nodes[0].api("GET", "/networks/ingress")["IPAM"]["Config"][0]["Subnet"])
    wanted = [IPv4Network("172.18.0.0/16"), IPv4Network("10.72.0.0/24"), IPv4Network("10.71.0.0/24")]
    if published:
        wanted.insert(0, ingress)
    links = [link["ifname"] for link in as_json(node, space, "ip", "-j", "link")]
    assert sorted(links) == sorted(["lo", *(f"eth{number}" for number in range(len(wanted)))])
    for number, subnet_of in enumerate(wanted):
        assert any(
            address.version == 4 and address in subnet_of
            for address in map(ip_address, addresses(node, space, f"eth{number}"))
        ), f"eth{number} is not in {subnet_of}"
    gateway = f"eth{1 if published else 0}"
    assert f"default via 172.18.0.1 dev {gateway}" in inside(node, space, "ip", "route")


def test_two_tasks_reach_each_other_over_a_user_network_and_no_further(lab: Lab) -> None:
    first = lab.nodes[0]
    cli(first, "hivemesh", "network", "create", "--driver", "overlay", "--subnet", "10.73.0.0/24", "pair")
    (one, two) = start_service(lab, "--network", "pair", replicas=2, port=0)
    assert one.node != two.node
    (target,) = [address for address in two.addresses if address.startswith("10.73.")]
    answer = inside(lab.node(one.node), one.id[:12], "curl", "-s", "-m", "3", f"http://{target}/")
    assert f"Hostname: {two.host}" in answer
    spaces = {node.name: [name for name in namespaces(node) if name.startswith("1-")] for node in lab.nodes}
    (idle,) = {node.name for node in lab.nodes} - {one.node, two.node}
    assert {name: len(found) for name, found in spaces.items()} == {one.node: 2, two.node: 2, idle: 1}

    cli(first, "hivemesh", "service", "rm", SERVICE)
    eventually(lambda: _assert_only_ingress(lab))


def _assert_only_ingress(lab: Lab) -> None:
    for node in lab.nodes:
        assert len([name for name in namespaces(node) if name.startswith("1-")]) == 1


def test_published_port_becomes_the_target_port_in_the_tasks_own_namespace(lab: Lab) -> None:
    (task,) = start_service(lab, "--publish", "8053:80/udp", replicas=1)
    node = lab.node(task.node)
    for name, port in (("tcp_ports", PORT), ("udp_ports", 8053)):
        listing = inside(node, task.id[:12], "nft", "-n", "list", "map", "inet", "hivemesh", name)
        assert f"elements = {{ {port} : 80 }}" in listing
    # nobody else translates it: the sandbox of the mesh keeps the port
    assert f"{PORT} : 80" not in inside(node, "ingress_sbox", "nft", "-n", "list", "ruleset")


def test_nodes_without_a_task_have_no_network_of_users(lab: Lab) -> None:
    cli(lab.nodes[0], "hivemesh", "network", "create", "--driver", "overlay", "lonely")
    _assert_only_ingress(lab)


def test_new_ingress_network_with_another_subnet_carries_the_mesh(lab: Lab) -> None:
    first = lab.nodes[0]
    try:
        first.api("DELETE", "/networks/ingress")
        eventually(lambda: _assert_no_mesh(lab))
        cli(first, "hivemesh", "network", "create", "--driver", "overlay", "--ingress", "--subnet", "10.74.0.0/24",
            "mesh")  # fmt: skip
        (task,) = start_service(lab, replicas=1)
        assert any(address.startswith("10.74.0.") for address in task.addresses)
        for node in lab.nodes:
            assert curl(lab.client, str(node.spec.v4.ip))[0].host == task.host
            assert curl(lab.client, str(node.spec.v6.ip))[0].client == str(lab.client.spec.v6.ip)
        assert details(first, overlay_of(first, ingress_id(lab)), "vxlan0")["linkinfo"]["info_data"]["id"] >= 4096
    finally:
        lab.reset()
        for network in first.api("GET", "/networks"):
            if network["Ingress"]:
                first.api("DELETE", f"/networks/{network['Id']}")
        eventually(lambda: _assert_no_mesh(lab))
        cli(first, "hivemesh", "network", "create", "--driver", "overlay", "--ingress", "ingress")
    eventually(lambda: _assert_mesh(lab))


def _assert_mesh(lab: Lab) -> None:
    for node in lab.nodes:
        assert "ingress_sbox" in namespaces(node)


def _assert_no_mesh(lab: Lab) -> None:
    for node in lab.nodes:
        assert namespaces(node) == []


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")
def test_docker_inspects_what_the_kernel_has(lab: Lab) -> None:
    (task,) = start_service(lab, replicas=1)
    shown = json.loads(cli(lab.nodes[0], "docker", "inspect", task.id))[0]
    node = lab.node(task.node)
    spec = next(at for at in shown["NetworksAttachments"] if at["Network"]["Spec"]["Name"] == "ingress")
    assert {address.partition("/")[0] for address in spec["Addresses"]} == set(addresses(node, task.id[:12], "eth0"))
    assert shown["Status"]["ContainerStatus"]["ContainerID"] in node.exec("podman", "ps", "-q", "--no-trunc").stdout
