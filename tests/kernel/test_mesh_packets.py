"""The routing mesh with real packets: three nodes, a client outside, containers; TCP and UDP, IPv4 and IPv6."""

import ipaddress
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from mesh_rig import (
    CLIENT,
    INGRESS,
    V4,
    V6,
    Node,
    Placed,
    Reply,
    Rig,
    apply,
    ask,
    ask_again,
    big_datagram,
    bulk,
    counted,
    differences,
    doubt,
    facts_of,
    flows,
    heard,
    hush,
    listen_for_flows,
    listen_past_the_mesh,
    remove,
    run,
    see,
    send_tunnelled,
    serve,
    tunnelled,
)

from hivemesh.dataplane.plan import GatewayLease, HostPort, plan_host
from hivemesh.model.service import Door, PortConfig
from hivemesh.wire.control import AnyItem, TaskItem, key_of

pytestmark = pytest.mark.kernel


OVERLAY = f"1-{INGRESS[:10]}"


def port(published: int, target: int, protocol: str = "tcp") -> PortConfig:
    return PortConfig(published_port=published, target_port=target, protocol=protocol)  # type: ignore[arg-type]


def lease(last: int) -> GatewayLease:
    return GatewayLease(
        v4=ipaddress.IPv4Interface(f"172.18.0.{last}/16"), v6=ipaddress.IPv6Interface(f"fd77:1::{last:x}/64")
    )


WEB = (port(8090, 80), port(8090, 53, "udp"), port(8091, 80))
SOLO = (port(8092, 80), port(8092, 53, "udp"))
EMPTY = (port(8093, 80), port(8093, 53, "udp"))
OWN = PortConfig(published_port=9090, target_port=80, publish_mode="host")
WEB1 = Placed("web1", 2, 21, lease(3), (*WEB, *SOLO, OWN))
WEB2 = Placed("web2", 3, 22, lease(3), WEB)
BOX1 = Placed("box1", 1, 0, lease(9), ())
BOX2 = Placed("box2", 2, 0, lease(9), ())
HOST_PORT = HostPort(
    protocol="tcp", port=9090, target=80, v4=ipaddress.IPv4Address("172.18.0.3"), v6=ipaddress.IPv6Address("fd77:1::3")
)

FAMILIES = pytest.mark.parametrize("version", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def address(node: int, version: int) -> str:
    return f"{V4 + '.' if version == 4 else V6}1{node}"


def loopback(version: int) -> str:
    return "127.0.0.1" if version == 4 else "::1"


def client(version: int) -> str:
    return CLIENT[0 if version == 4 else 1]


def listen(rig: Rig, task: Placed) -> None:
    node = rig.nodes[task.node]
    node.call(serve, task.name, "tcp", 80, at=task.sandbox)
    # Both ways of listening to UDP: one socket per family, and one for both
    if task.name == "web1":
        node.call(serve, task.name, "udp", 53, "0.0.0.0", at=task.sandbox)
        node.call(serve, task.name, "udp", 53, "::", True, at=task.sandbox)
    else:
        node.call(serve, task.name, "udp", 53, at=task.sandbox)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig = Rig(
        tasks=[WEB1, WEB2, BOX1, BOX2],
        services={"web": WEB, "solo": SOLO, "empty": EMPTY},
        host_ports={2: (HOST_PORT,)},
    )
    try:
        rig.start()
        rig.apply()
        for task in (WEB1, WEB2):
            listen(rig, task)
        yield rig
    finally:
        rig.stop()


def servers(replies: list[Reply | str]) -> Counter[str]:
    return Counter(r.server if isinstance(r, Reply) else r for r in replies)


def seen(replies: list[Reply | str]) -> set[str]:
    return {r.seen if isinstance(r, Reply) else r for r in replies}


@FAMILIES
@PROTOCOLS
def test_any_client_through_any_node_is_spread_evenly_and_seen_as_itself(rig: Rig, protocol: str, version: int) -> None:
    even = Counter(web1=2, web2=2)
    for node in (1, 2, 3):
        replies = rig.client.call(ask, protocol, address(node, version), 8090, times=4)
        assert (servers(replies), seen(replies)) == (even, {client(version)}), f"client to node {node}"
        for source in (1, 2, 3):
            replies = rig.nodes[source].call(ask, protocol, address(node, version), 8090, times=4)
            assert (servers(replies), seen(replies)) == (even, {address(source, version)}), f"node {source} to {node}"
        replies = rig.nodes[node].call(ask, protocol, loopback(version), 8090, times=4)
        assert (servers(replies), seen(replies)) == (even, {address(node, version)}), f"node {node} to itself"
        for box in (BOX1, BOX2, WEB1):  # the last one is a backend that may meet itself
            replies = rig.nodes[box.node].call(ask, protocol, address(node, version), 8090, times=4, at=box.sandbox)
            shown = {address(box.node, version)}
            assert (servers(replies), seen(replies)) == (even, shown), f"container {box.name} to node {node}"


@FAMILIES
@PROTOCOLS
def test_same_client_port_through_two_nodes_keeps_both_connections(rig: Rig, protocol: str, version: int) -> None:
    source = (client(version), 45001 + 10 * version + len(protocol) + (protocol == "udp"))
    replies = []
    try:
        for node in (1, 3):
            replies += rig.client.call(ask, protocol, address(node, version), 8092, source=source, keep=True, timeout=2)
    finally:
        again = rig.client.call(ask_again)
    assert servers(replies) == servers(again) == {"web1": 2}
    assert seen(replies) == seen(again) == {client(version)}


@FAMILIES
def test_same_client_port_to_two_ports_of_one_target_keeps_both(rig: Rig, version: int) -> None:
    source = (client(version), 46001 + version)
    try:
        first = rig.client.call(ask, "tcp", address(1, version), 8092, source=source, keep=True, timeout=2)
        # the turn of one of the two backends; web1 is among them, and there the addresses and ports are the same
        second = rig.client.call(ask, "tcp", address(1, version), 8091, source=source, keep=True, timeout=2)
        third = rig.client.call(ask, "tcp", address(2, version), 8091, source=source, keep=True, timeout=2)
        fourth = rig.client.call(ask, "tcp", address(3, version), 8091, source=source, keep=True, timeout=2)
    finally:
        again = rig.client.call(ask_again)
    replies = first + second + third + fourth
    assert seen(replies) == seen(again) == {client(version)}
    assert servers(replies) == servers(again)
    assert servers(replies)["web1"] >= 2


@FAMILIES
@PROTOCOLS
def test_port_without_backends_is_refused(rig: Rig, protocol: str, version: int) -> None:
    assert rig.client.call(ask, protocol, address(1, version), 8093) == ["ConnectionRefusedError"]
    assert rig.nodes[1].call(ask, protocol, loopback(version), 8093) == ["ConnectionRefusedError"]


@FAMILIES
def test_large_transfers_pass_the_smaller_mtu_of_the_overlay(rig: Rig, version: int) -> None:
    came, last = rig.client.call(bulk, address(1, version), 8092, 1_000_000)
    assert came == 1_000_000
    assert last.seen == client(version)
    assert rig.client.call(big_datagram, address(1, version), 8092, 1500 - (28 if version == 4 else 48))


@FAMILIES
def test_only_published_ports_are_reachable_over_ingress(rig: Rig, version: int) -> None:
    target = "10.0.0.21" if version == 4 else "fd10::15"
    quick = {"timeout": 0.3}
    for at, node in (("ingress_sbox", 1), (WEB2.sandbox, 3)):
        assert rig.nodes[node].call(ask, "tcp", target, 80, at=at, **quick) == ["TimeoutError"]
    other = "10.0.0.22" if version == 4 else "fd10::16"
    assert rig.nodes[2].call(ask, "tcp", other, 8090, at=WEB1.sandbox, **quick) == ["TimeoutError"]


@FAMILIES
def test_containers_are_not_reached_by_their_gateway_address(rig: Rig, version: int) -> None:
    target, prefix = ("172.18.0.3", "172.18.0.0/16") if version == 4 else ("fd77:1::3", "fd77:1::/64")
    reply = rig.nodes[2].call(ask, "tcp", target, 80, at=BOX2.sandbox, timeout=0.3)
    assert not isinstance(reply[0], Reply), "from another container"
    rig.client.call(run, "ip", "route", "add", prefix, "via", address(2, version))
    try:
        assert rig.client.call(ask, "tcp", target, 80, timeout=0.3) == ["TimeoutError"]
    finally:
        rig.client.call(run, "ip", "route", "del", prefix)


@FAMILIES
def test_host_port_leads_to_its_container_from_everywhere(rig: Rig, version: int) -> None:
    node = rig.nodes[2]
    target = address(2, version)
    assert rig.client.call(ask, "tcp", target, 9090)[0].seen == client(version)
    assert rig.nodes[1].call(ask, "tcp", target, 9090)[0].seen == address(1, version)
    for host in (target, loopback(version)):
        assert node.call(ask, "tcp", host, 9090)[0].seen == target
    for box in (BOX2, WEB1):
        assert node.call(ask, "tcp", target, 9090, at=box.sandbox)[0].seen == target
    assert rig.client.call(ask, "tcp", address(1, version), 9090) == ["ConnectionRefusedError"]


@FAMILIES
def test_backend_that_leaves_gets_no_new_connections_and_keeps_the_old(rig: Rig, version: int) -> None:
    before = rig.tasks
    try:
        held = rig.client.call(ask, "tcp", address(1, version), 8090, times=2, keep=True)
        rig.tasks = [replace(t, ports=SOLO) if t.name == "web1" else t for t in before]
        # the task itself stays as it is until it is told to stop
        for number in (1, 2, 3):
            host, overlay, ingress, *_ = rig.plans(number)
            assert rig.nodes[number].call(apply, [host, overlay, ingress]) == []
        replies = rig.client.call(ask, "tcp", address(1, version), 8090, times=3)
        assert servers(replies) == {"web2": 3}
        rig.tasks = [t for t in before if t.name.startswith("box")]
        for number in (1, 2, 3):
            assert rig.nodes[number].call(apply, rig.plans(number)[:3]) == []
        assert rig.client.call(ask, "tcp", address(1, version), 8090) == ["ConnectionRefusedError"]
    finally:
        rig.tasks = before
        rig.apply()
        assert servers(rig.client.call(ask_again)) == servers(held) == {"web1": 1, "web2": 1}


@FAMILIES
def test_flushed_tables_are_put_back_and_old_connections_go_on(rig: Rig, version: int) -> None:
    held = rig.client.call(ask, "tcp", address(1, version), 8090, times=2, keep=True)
    held += rig.client.call(ask, "udp", address(1, version), 8090, times=2, keep=True)
    try:
        for number in (1, 2, 3):
            namespaces = [plan.namespace for plan in rig.plans(number)]
            for namespace in namespaces:
                rig.nodes[number].call(run, "nft", "flush", "ruleset", at=namespace)
            rig.nodes[number].call(doubt, namespaces)
            assert rig.nodes[number].call(differences, rig.plans(number)) != []
        rig.apply()
    finally:
        again = rig.client.call(ask_again)
    assert (servers(again), seen(again)) == (servers(held), {client(version)})


def test_two_services_have_one_number_at_addresses_apart(rig: Rig) -> None:
    """On node 1 `one` is open at its usual addresses and `two` at others; on node 3 `two` at all; on node 2 nothing."""
    before, services = rig.tasks, rig.services
    one, two = (port(8085, 80), port(8085, 53, "udp")), (port(8085, 81), port(8085, 54, "udp"))
    doors = tuple(Door(protocol=p.protocol, port=8085, number=61000) for p in two)
    tasks = [Placed("one", 2, 31, lease(31), one), Placed("two", 3, 32, lease(32), two, doors)]
    nowhere = {"addresses": ()}
    second = {4: f"{V4}.21", 6: f"{V6}21"}
    usual = {"addresses": tuple(ipaddress.ip_network(address(1, version)) for version in (4, 6))}
    others = {"addresses": (ipaddress.ip_network(f"{V4}.20/30"), ipaddress.ip_network(f"{V6}20/124")), "door": 61000}
    node = rig.nodes[1]
    for text in (f"{V4}.21/24", f"{V6}21/64"):
        node.call(run, "ip", "addr", "add", text, "dev", "eth0", *(["nodad"] if ":" in text else []))
    try:
        rig.tasks, rig.services = [*before, *tasks], services | {"one": one, "two": two}
        rig.told = {
            (1, "one"): usual, (1, "two"): others,
            (2, "one"): nowhere, (2, "two"): nowhere | {"door": 61000},
            (3, "one"): nowhere, (3, "two"): {"door": 61000},
        }  # fmt: skip
        rig.apply()
        for task in tasks:
            for found in task.ports:
                rig.nodes[task.node].call(serve, task.name, found.protocol, found.target_port, at=task.sandbox)
        for version, protocol in itertools.product((4, 6), ("tcp", "udp")):

            def answers(host: str, asker: Node = rig.client, protocol: str = protocol, **at: str) -> list[Any]:
                return [r.server if isinstance(r, Reply) else r for r in asker.call(ask, protocol, host, 8085, **at)]

            refused = ["ConnectionRefusedError"]
            assert answers(address(1, version)) == ["one"]
            assert answers(second[version]) == ["two"]
            assert answers(address(2, version)) == refused
            assert answers(address(3, version)) == ["two"]
            assert answers(second[version], node) == answers(second[version], node, at=BOX1.sandbox) == ["two"]
            assert answers(loopback(version), node) == refused
            assert answers(loopback(version), rig.nodes[3]) == ["two"]
        for number in (1, 3):
            assert node.call(run, "nft", "list", "table", "inet", "hivemesh")
            assert rig.nodes[number].call(differences, rig.plans(number)) == []
    finally:
        rig.tasks, rig.services, rig.told = before, services, {}
        rig.apply()
        for task in tasks:
            rig.nodes[task.node].call(hush, task.name)
            rig.nodes[task.node].call(remove, task.sandbox)
        for text in (f"{V4}.21/24", f"{V6}21/64"):
            node.call(run, "ip", "addr", "del", text, "dev", "eth0")


def test_vxlan_from_a_stranger_is_not_accepted(rig: Rig) -> None:
    facts = facts_of(2)
    known = [facts_of(n).vtep for n in (2, 3)]
    try:
        plan = plan_host(facts, rig.publishes(), rig.host_ports[2], known, 4789)
        assert rig.nodes[2].call(apply, [plan]) == []
        assert rig.client.call(ask, "tcp", address(1, 4), 8092, timeout=0.5) == ["TimeoutError"]
        assert servers(rig.client.call(ask, "tcp", address(3, 4), 8092)) == {"web1": 1}
    finally:
        rig.apply()


def test_strangers_frames_to_all_of_a_network_are_not_accepted_either(rig: Rig) -> None:
    node, member, stranger = rig.nodes[2], rig.nodes[1], rig.client
    everyone = [f"{V4}.255", "255.255.255.255", "224.0.0.1", address(2, 4)]
    before = node.call(tunnelled, at=OVERLAY)
    for target in everyone:
        stranger.call(send_tunnelled, target)
    for count, target in enumerate(everyone, start=1):
        member.call(send_tunnelled, target)
        until = time.monotonic() + 5
        while node.call(tunnelled, at=OVERLAY) < before + count and time.monotonic() < until:
            time.sleep(0.01)
        assert node.call(tunnelled, at=OVERLAY) == before + count, target


def test_tunnels_of_others_are_forwarded_through_a_node(rig: Rig) -> None:
    node, far = rig.nodes[2], rig.nodes[3]
    rig.client.call(run, "ip", "route", "add", "192.0.2.3", "via", address(2, 4))
    node.call(run, "ip", "route", "add", "192.0.2.3", "via", address(3, 4))
    far.call(run, "ip", "addr", "add", "192.0.2.3", "dev", "lo")
    known = [facts_of(n).vtep for n in (1, 2, 3)]
    try:  # where the tunnel ends, its other end is known
        plan = plan_host(facts_of(3), rig.publishes(), (), [*known, ipaddress.ip_address(CLIENT[0])], 4789)
        assert far.call(apply, [plan]) == []
        before = far.call(tunnelled, at=OVERLAY)
        rig.client.call(send_tunnelled, "192.0.2.3")
        until = time.monotonic() + 5
        while far.call(tunnelled, at=OVERLAY) == before and time.monotonic() < until:
            time.sleep(0.01)
        assert far.call(tunnelled, at=OVERLAY) == before + 1
    finally:
        rig.client.call(run, "ip", "route", "del", "192.0.2.3")
        node.call(run, "ip", "route", "del", "192.0.2.3")
        far.call(run, "ip", "addr", "del", "192.0.2.3", "dev", "lo")
        rig.apply()


def test_mesh_works_over_an_ipv6_underlay() -> None:
    rig = Rig(tasks=[WEB1], services={"solo": SOLO}, six=True)
    try:
        rig.start()
        rig.apply()
        listen(rig, WEB1)
        for version in (4, 6):
            for protocol in ("tcp", "udp"):
                replies = rig.client.call(ask, protocol, address(1, version), 8092)
                assert (servers(replies), seen(replies)) == ({"web1": 1}, {client(version)})
            came, _ = rig.client.call(bulk, address(3, version), 8092, 200_000)
            assert came == 200_000
        assert rig.nodes[1].call(differences, rig.plans(1)) == []
        known = [facts_of(n, six=True).vtep for n in (2, 3)]  # and node 1 is a stranger
        plan = plan_host(facts_of(2, six=True), rig.publishes(2), rig.host_ports.get(2, ()), known, 4789)
        assert rig.nodes[2].call(apply, [plan]) == []
        assert rig.client.call(ask, "tcp", address(1, 4), 8092, timeout=0.5) == ["TimeoutError"]
        assert servers(rig.client.call(ask, "tcp", address(3, 4), 8092)) == {"web1": 1}
    finally:
        rig.stop()


def test_second_apply_changes_nothing_and_nft_can_list_all(rig: Rig) -> None:
    for number in (1, 2, 3):
        assert rig.nodes[number].call(differences, rig.plans(number)) == []
        for namespace in ("", "ingress_sbox"):
            listing = rig.nodes[number].call(run, "nft", "list", "table", "inet", "hivemesh", at=namespace)
            assert "8090" in listing
    listing = rig.nodes[2].call(run, "nft", "list", "ruleset", at=WEB1.sandbox)
    assert "8090 : 80" in listing
    assert "@ll,16,32 set meta mark" in listing


def test_service_that_is_removed_leaves_nothing(rig: Rig) -> None:
    before = rig.tasks, rig.services
    ports = (port(8099, 80), port(8099, 7, "sctp"))  # rules for SCTP are understood by every kernel
    extra = Placed("gone", 1, 77, lease(12), ports)
    node = rig.nodes[1]
    try:
        rig.tasks = [*rig.tasks, extra]
        rig.services = rig.services | {"gone": ports}
        rig.apply()
        node.call(serve, "gone", "tcp", 80, at=extra.sandbox)
        assert servers(rig.client.call(ask, "tcp", address(2, 6), 8099)) == {"gone": 1}
    finally:
        rig.tasks, rig.services = before
        rig.apply()
        node.call(hush, "gone")
        node.call(remove, extra.sandbox)
    assert extra.sandbox not in node.call(run, "ip", "netns")
    assert "8099" not in node.call(run, "nft", "list", "ruleset")
    assert "8099" not in node.call(run, "nft", "list", "ruleset", at="ingress_sbox")
    deadline = time.monotonic() + 2  # the kernel takes a namespace apart in its own time
    while time.monotonic() < deadline and "gone" in node.call(run, "ip", "link"):
        time.sleep(0.02)
    assert "hm-ve-gone" not in node.call(run, "ip", "link")
    assert "vethgone" not in node.call(run, "ip", "-n", OVERLAY, "link")
    for number in (2, 3):
        held = rig.nodes[number].call(run, "bridge", "-n", OVERLAY, "fdb", "show", "dev", "vxlan0")
        ours = [line for line in held.splitlines() if " self " in line]  # without what the bridge learned and forgets
        assert ours
        assert not any("02:42:0a:00:00:4d" in line for line in ours)


def watch(rig: Rig, number: int) -> Node:
    """The node, which from now on can say what it counts."""
    node = rig.nodes[number]
    items: list[AnyItem] = [*rig.publishes(number), rig.network(number)]
    items += [TaskItem(task=placed.task) for placed in rig.tasks if placed.node == number]
    node.call(see, {key_of(item): item for item in items}, rig.plans(number))
    return node


def grown(before: dict[tuple[str, ...], int], after: dict[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    found = {labels: value - before.get(labels, 0) for labels, value in after.items()}
    return {labels: value for labels, value in found.items() if value}


@FAMILIES
@PROTOCOLS
def test_each_backends_connections_and_bytes_are_counted(rig: Rig, protocol: str, version: int) -> None:
    node = watch(rig, 1)
    before = node.call(counted)
    assert servers(rig.client.call(ask, protocol, address(1, version), 8090, times=4)) == Counter(web1=2, web2=2)
    after = node.call(counted)
    backends = ("10.0.0.21", "10.0.0.22") if version == 4 else ("fd10::15", "fd10::16")
    ends = [("web", protocol, "8090", backend) for backend in backends]
    began = grown(before["hivemesh_connections"], after["hivemesh_connections"])
    assert began == dict.fromkeys(ends, 2)
    carried = grown(before["hivemesh_bytes"], after["hivemesh_bytes"])
    assert carried.keys() == {(*end, way) for end in ends for way in ("to_backend", "from_backend")}
    assert min(carried.values()) > 2 * 28  # an IP and a UDP header at least
    assert grown(before["hivemesh_refused_connections"], after["hivemesh_refused_connections"]) == {}


@FAMILIES
def test_port_in_host_mode_counts_its_connections_and_bytes(rig: Rig, version: int) -> None:
    node = watch(rig, 2)
    before = node.call(counted)
    assert servers(rig.client.call(ask, "tcp", address(2, version), 9090, times=3)) == Counter(web1=3)
    after = node.call(counted)
    end = ("web", "tcp", "9090", "172.18.0.3" if version == 4 else "fd77:1::3")
    assert grown(before["hivemesh_connections"], after["hivemesh_connections"]) == {end: 3}
    carried = grown(before["hivemesh_bytes"], after["hivemesh_bytes"])
    assert carried.keys() == {(*end, way) for way in ("to_backend", "from_backend")}
    assert min(carried.values()) > 3 * 5 * 40  # headers of a whole connection


@FAMILIES
def test_connections_to_a_port_without_backends_are_counted_as_refused(rig: Rig, version: int) -> None:
    tasks = rig.tasks
    try:
        rig.tasks = [t for t in tasks if t.name.startswith("box")]  # then nothing else asks for connection tracking
        rig.apply()
        node = watch(rig, 1)
        before = node.call(counted)["hivemesh_refused_connections"]
        assert rig.client.call(ask, "tcp", address(1, version), 8093, times=3) == ["ConnectionRefusedError"] * 3
        after = node.call(counted)["hivemesh_refused_connections"]
        assert grown(before, after) == {("empty", "tcp", "8093"): 3}
    finally:
        rig.tasks = tasks
        rig.apply()


def test_flushed_counters_and_dropped_packets_are_no_drift(rig: Rig) -> None:
    node = watch(rig, 1)
    reason = ("ingress", "connections do not begin on the overlay")
    before = node.call(counted)["hivemesh_dropped_packets"][reason]
    assert rig.nodes[2].call(ask, "tcp", "10.0.0.11", 8090, at=WEB1.sandbox, timeout=0.3) == ["TimeoutError"]
    node.call(run, "nft", "reset", "counters", "table", "inet", "hivemesh", at="ingress_sbox")
    assert node.call(counted)["hivemesh_dropped_packets"][reason] >= before
    assert node.call(differences, rig.plans(1)) == []


def test_flow_log_tells_client_service_and_backend_and_what_was_refused(rig: Rig) -> None:
    node = watch(rig, 1)
    node.call(listen_for_flows)
    rig.client.call(ask, "tcp", address(1, 4), 8092)
    rig.client.call(ask, "tcp", address(1, 6), 8093)
    told, lost = node.call(flows, 100)
    assert lost == 0
    shown = [(f.source.address, f.target.service, f.target.port, f.verdict) for f in told]
    assert shown == [(client(4), "solo", 8092, "balanced"), (client(6), "empty", 8093, "refused")]
    assert (told[0].backend.address, told[0].backend.service) == ("10.0.0.21", "solo")
    assert told[1].backend is None


@FAMILIES
def test_host_tells_of_ports_in_host_mode_and_of_nothing_else(rig: Rig, version: int) -> None:
    node, host = watch(rig, 2), address(2, version)
    node.call(listen_past_the_mesh)
    rig.client.call(ask, "udp", host, 8090, times=3)
    rig.client.call(ask, "tcp", host, 8091, times=3)
    rig.client.call(ask, "tcp", host, 7, times=1)
    rig.client.call(ask, "tcp", host, 9090)
    assert node.call(heard) == [(host, 9090, "172.18.0.3" if version == 4 else "fd77:1::3", 80)]


def test_flow_log_that_nobody_reads_counts_what_it_loses(rig: Rig) -> None:
    node = watch(rig, 1)
    before = node.call(counted)["hivemesh_connections"]
    node.call(listen_for_flows)
    rig.client.call(ask, "udp", address(1, 4), 8090, times=1200)  # of which some have the port of an earlier one
    began = grown(before, node.call(counted)["hivemesh_connections"])
    told, lost = node.call(flows, 10_000)
    assert lost > 0
    assert len(told) + lost == sum(began.values())
