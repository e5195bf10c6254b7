"""Plans applied to a real kernel, with iproute2 and nft as witnesses. Run by test_kernel_layer.py."""

import errno
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from socket import AF_INET, AF_INET6
from typing import Any

import pytest

from hivemesh.dataplane.apply import Applier
from hivemesh.kernel import netns, rtnl
from hivemesh.kernel.api import (
    HOST,
    Bridge,
    FdbEntry,
    LinkAddress,
    NamespacePlan,
    Neighbor,
    Route,
    Rule,
    Veth,
    VethEnd,
    Vxlan,
)
from hivemesh.kernel.faults import Faults
from hivemesh.model.addr import MAC, VNI
from hivemesh.model.errors import Conflict
from hivemesh.wire.nft import ACCEPT, Chain, Hook, Table, verdict
from hivemesh.wire.nft import Rule as NftRule

OVERLAY, SANDBOX = "1-overlay", "sandbox"
PEER, TASK = MAC("02:42:0a:00:00:09"), MAC("02:42:0a:00:00:05")
TABLE = Table(
    family="inet",
    name="hivemesh",
    chains=(
        Chain(
            name="input",
            hook=Hook(type="filter", hook="input", priority=0),
            rules=(NftRule(exprs=(verdict(ACCEPT),)),),
        ),
    ),
)
V4, V6 = ip_network("0.0.0.0/0"), ip_network("::/0")


def overlay(local: str = "127.0.0.1", peer: str = "127.0.0.9") -> NamespacePlan:
    return NamespacePlan(
        namespace=OVERLAY,
        mark="hivemesh/network/n1",
        links=(
            Bridge(name="br0", mtu=1450, mac=MAC("02:42:0a:00:00:01")),
            Vxlan(name="vxlan0", vni=VNI(4096), port=4789, local=ip_address(local), mtu=1450, master="br0"),
        ),
        addresses=frozenset(LinkAddress(link="br0", address=ip_interface(a)) for a in ("10.0.0.1/24", "fd00:1::1/64")),
        neighbors=frozenset(
            Neighbor(link="vxlan0", address=ip_address(a), mac=PEER) for a in ("10.0.0.9", "fd00:1::9")
        ),
        fdb=frozenset({FdbEntry(link="vxlan0", mac=PEER, vtep=ip_address(peer))}),
        sysctls={"net/ipv4/ip_forward": "0", "net/bridge/bridge-nf-call-iptables": "0"},
    )


def sandbox() -> NamespacePlan:
    return NamespacePlan(
        namespace=SANDBOX,
        mark="hivemesh/sandbox/t1",
        links=(
            Veth(
                name="eth0",
                mac=TASK,
                mtu=1450,
                outer=VethEnd(namespace=OVERLAY, name="veth1", master="br0", isolated=True, alias="hivemesh/port"),
            ),
        ),
        addresses=frozenset(LinkAddress(link="eth0", address=ip_interface(a)) for a in ("10.0.0.5/24", "fd00:1::5/64")),
        routes=frozenset(
            {
                Route(destination=V4, link="eth0", gateway=ip_address("10.0.0.1")),
                Route(destination=V6, link="eth0", gateway=ip_address("fd00:1::1")),
                Route(destination=V4, link="eth0", gateway=ip_address("169.254.42.1"), table=4900, onlink=True),
                Route(destination=V6, link="eth0", gateway=ip_address("fe80::42:1"), table=4900, onlink=True),
                Route(destination=ip_network("198.18.0.9/32"), link="eth0", table=255, local=True),
                Route(destination=ip_network("fd00:18::9/128"), link="eth0", table=255, local=True),
            }
        ),
        rules=frozenset(
            {
                Rule(family=AF_INET, priority=100, table=4900, source=ip_network("10.0.0.0/24")),
                Rule(family=AF_INET6, priority=100, table=4900, source=ip_network("fd00:1::/64")),
                Rule(family=AF_INET, priority=101, table=4900, mark=0x0A00, mask=0xFF00),
                Rule(family=AF_INET6, priority=101, table=4900, mark=0x0A00, mask=0xFF00),
            }
        ),
        neighbors=frozenset(
            Neighbor(link="eth0", address=ip_address(a), mac=MAC("02:42:00:00:00:00"))
            for a in ("169.254.42.1", "fe80::42:1")
        ),
        sysctls={"net/ipv4/conf/eth0/rp_filter": "2", "net/ipv6/conf/default/accept_dad": "0"},
        tables=(TABLE,),
    )


def sh(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(command: str) -> list[dict[str, Any]]:
    """What an iproute2 command shows, which prints nothing at all for an empty list."""
    found: list[dict[str, Any]] = json.loads(sh(command) or "[]")
    return [entry for entry in found if entry]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    applier = Applier()
    for name in netns.names():
        try:
            applier.remove(name)  # a namespace itself goes some time later, and its VNI with it
        except Conflict:
            netns.delete(name)
    applier.remove(HOST)
    for link in json.loads(sh("ip -j link")):
        if link["ifname"] != "lo":
            sh(f"ip link delete {link['ifname']} || true")  # the other end of a veth may have taken it along
    rtnl.forget(HOST)


@pytest.fixture
def applier() -> Applier:
    applier = Applier()
    for plan in (overlay(), sandbox()):
        assert applier.ensure(plan).failed == ()
    return applier


# --- the plain way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("local", "peer"), [("127.0.0.1", "127.0.0.9"), ("::1", "fd00:99::9")])
def test_overlay_is_what_the_plan_says(local: str, peer: str) -> None:
    outcome = Applier().ensure(overlay(local, peer))
    assert (outcome.created, outcome.failed) == (True, ())
    links = {link["ifname"]: link for link in shown(f"ip -j -d -n {OVERLAY} link")}
    assert links["lo"]["ifalias"] == "hivemesh/network/n1"
    bridge, vxlan = links["br0"], links["vxlan0"]
    assert (bridge["mtu"], bridge["address"]) == (1450, "02:42:0a:00:00:01")
    assert bridge["linkinfo"]["info_data"]["mcast_snooping"] == 0
    assert "UP" in bridge["flags"]
    data = vxlan["linkinfo"]["info_data"]
    assert (vxlan["mtu"], vxlan["master"]) == (1450, "br0")
    assert "UP" in vxlan["flags"]
    assert (data["id"], data["port"], data.get("local", data.get("local6"))) == (4096, 4789, local)
    assert (data["learning"], data["proxy"]) == (False, True)
    assert "link_netnsid" in vxlan  # its socket stayed in the host
    (entry,) = [e for e in shown(f"bridge -j -n {OVERLAY} fdb show dev vxlan0") if "dst" in e]
    assert (entry["mac"], entry["dst"], entry["state"], entry["flags"]) == (PEER, peer, "permanent", ["self"])
    neighbors = {e["dst"]: e for e in shown(f"ip -j -n {OVERLAY} neigh show nud permanent")}
    assert neighbors.keys() == {"10.0.0.9", "fd00:1::9"}
    assert {e["lladdr"] for e in neighbors.values()} == {PEER}


def test_sandbox_is_what_the_plan_says(applier: Applier) -> None:
    (eth0,) = shown(f"ip -j -d -n {SANDBOX} addr show eth0")
    assert (eth0["address"], eth0["mtu"], "UP" in eth0["flags"]) == (TASK, 1450, True)
    addresses = {f"{a['local']}/{a['prefixlen']}": a for a in eth0["addr_info"] if a["scope"] == "global"}
    assert addresses.keys() == {"10.0.0.5/24", "fd00:1::5/64"}
    assert addresses["fd00:1::5/64"]["nodad"]
    (port,) = shown(f"ip -j -d -n {OVERLAY} link show veth1")
    assert (port["master"], port["ifalias"], port["mtu"]) == ("br0", "hivemesh/port", 1450)
    assert port["linkinfo"]["info_slave_data"]["isolated"]
    for family in ("-4", "-6"):
        (route,) = shown(f"ip -j {family} -n {SANDBOX} route show default table main")
        assert route["gateway"] in ("10.0.0.1", "fd00:1::1")
        (reply,) = shown(f"ip -j {family} -n {SANDBOX} route show default table 4900")
        assert (reply["gateway"], reply["flags"]) in [("169.254.42.1", ["onlink"]), ("fe80::42:1", ["onlink"])]
        rules = sh(f"ip {family} -n {SANDBOX} rule")
        assert "lookup 4900 proto 117" in rules
        assert "fwmark 0xa00/0xff00 lookup 4900 proto 117" in rules
    assert "local 198.18.0.9" in sh(f"ip -n {SANDBOX} route show table local proto 117")
    assert sh(f"ip netns exec {SANDBOX} sysctl -n net.ipv4.conf.eth0.rp_filter").strip() == "2"
    assert "chain input" in sh(f"ip netns exec {SANDBOX} nft list table inet hivemesh")
    assert applier.differences(sandbox()) == []


def test_second_ensure_changes_nothing(applier: Applier) -> None:
    for plan in (overlay(), sandbox()):
        outcome = applier.ensure(plan)
        assert (outcome.created, outcome.changed, outcome.failed, outcome.repaired) == (False, 0, (), ())


@pytest.mark.usefixtures("applier")
def test_process_without_memory_adopts_and_changes_nothing() -> None:
    before = sh("ip -a netns exec ip -o link")
    fresh = Applier()
    for plan in (overlay(), sandbox()):
        outcome = fresh.ensure(plan)
        assert (outcome.created, outcome.changed, outcome.failed) == (False, 0, ())
    assert sh("ip -a netns exec ip -o link") == before


def test_changed_plan_touches_only_what_changed(applier: Applier) -> None:
    more = replace(
        overlay(),
        fdb=overlay().fdb | {FdbEntry(link="vxlan0", mac=MAC("02:42:0a:00:00:0a"), vtep=ip_address("127.0.0.8"))},
    )
    assert applier.ensure(more).changed == 1
    moved = replace(overlay(), fdb=frozenset({FdbEntry(link="vxlan0", mac=PEER, vtep=ip_address("127.0.0.7"))}))
    outcome = applier.ensure(moved)
    assert (outcome.changed, outcome.repaired) == (2, ())
    (entry,) = [e for e in shown(f"bridge -j -n {OVERLAY} fdb show dev vxlan0") if "dst" in e]
    assert entry["dst"] == "127.0.0.7"
    assert applier.differences(moved) == []


def test_smaller_plan_removes_what_it_no_longer_has(applier: Applier) -> None:
    bare = NamespacePlan(namespace=SANDBOX, mark="hivemesh/sandbox/t1")
    assert applier.ensure(bare).failed == ()
    assert [link["ifname"] for link in shown(f"ip -j -n {SANDBOX} link")] == ["lo"]
    assert sh(f"ip netns exec {SANDBOX} nft list ruleset") == ""
    assert "4900" not in sh(f"ip -n {SANDBOX} rule") + sh(f"ip -6 -n {SANDBOX} rule")
    assert "veth1" not in sh(f"ip -n {OVERLAY} link")
    assert applier.differences(bare) == []
    # and back
    assert applier.ensure(sandbox()).failed == ()
    assert applier.differences(sandbox()) == []


def test_removed_overlay_gives_its_vni_back_at_once(applier: Applier) -> None:
    for _ in range(3):
        applier.remove(SANDBOX)
        applier.remove(OVERLAY)
        applier.remove(OVERLAY)
        assert netns.names() == []
        assert applier.ensure(overlay()).failed == ()
        assert applier.ensure(sandbox()).failed == ()


def test_vxlan_attributes_that_change_lead_to_a_new_device(applier: Applier) -> None:
    vxlan = overlay().links[1]
    assert isinstance(vxlan, Vxlan)
    for other in (
        replace(vxlan, vni=VNI(4097)),
        replace(vxlan, port=4790),
        replace(vxlan, local=ip_address("::1")),
        replace(vxlan, mtu=1400),
    ):
        peer = ip_address("127.0.0.9" if other.local.version == 4 else "fd00:99::9")
        plan = replace(
            overlay(),
            links=(replace(overlay().links[0], mtu=other.mtu), other),
            fdb=frozenset({FdbEntry(link="vxlan0", mac=PEER, vtep=peer)}),
        )
        assert applier.ensure(plan).failed == ()
        assert applier.differences(plan) == []


# --- what others undo ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        f"ip -n {OVERLAY} link delete vxlan0",
        f"ip -n {OVERLAY} link delete br0",
        f"ip -n {OVERLAY} link set vxlan0 nomaster",
        f"ip -n {OVERLAY} link set vxlan0 down",
        f"ip -n {OVERLAY} link set br0 address 02:00:00:00:00:99",
        f"ip -n {OVERLAY} link set br0 type bridge mcast_snooping 1",
        f"ip -n {OVERLAY} link set lo down alias nobody",
        f"ip -n {OVERLAY} link delete veth1",
        f"ip -n {OVERLAY} link set veth1 nomaster",
        f"ip -n {OVERLAY} link set veth1 down",
        f"bridge -n {OVERLAY} link set dev veth1 isolated off",
        f"bridge -n {OVERLAY} fdb delete {PEER} dev vxlan0 self",
        f"bridge -n {OVERLAY} fdb replace {PEER} dev vxlan0 dst 127.0.0.77 self permanent",
        f"bridge -n {OVERLAY} fdb add 02:42:0a:00:00:66 dev vxlan0 dst 127.0.0.66 self permanent",
        f"bridge -n {OVERLAY} fdb append 00:00:00:00:00:00 dev vxlan0 dst 127.0.0.66 self permanent; "
        f"bridge -n {OVERLAY} fdb append 00:00:00:00:00:00 dev vxlan0 dst 127.0.0.67 self permanent",
        f"ip -n {OVERLAY} neigh delete 10.0.0.9 dev vxlan0",
        f"ip -n {OVERLAY} neigh replace fd00:1::9 lladdr 02:00:00:00:00:01 dev vxlan0 nud permanent",
        f"ip -n {OVERLAY} neigh add fd00:1::66 lladdr 02:00:00:00:00:01 dev vxlan0 nud permanent",
        f"ip -n {SANDBOX} addr flush dev eth0",
        f"ip -n {SANDBOX} addr add fd00:1::66/64 dev eth0",
        f"ip -n {SANDBOX} addr add 10.0.0.66/24 dev eth0",
        f"ip -n {SANDBOX} link set eth0 address 02:00:00:00:00:01 mtu 1300",
        f"ip -n {SANDBOX} link set eth0 down",
        f"ip -n {SANDBOX} link set eth0 down; ip -n {SANDBOX} link set eth0 up",
        f"ip -n {SANDBOX} link set eth0 name eth7",
        f"ip -n {SANDBOX} link add foreign type veth peer name foreign1",
        f"ip -n {SANDBOX} route delete default",
        f"ip -6 -n {SANDBOX} route replace default dev eth0",
        f"ip -n {SANDBOX} route add 192.0.2.0/24 dev eth0 proto 117",
        f"ip -n {SANDBOX} route add 192.0.2.0/24 proto 117 nexthop via 10.0.0.7 nexthop via 10.0.0.8",
        f"ip -n {SANDBOX} rule delete priority 100",
        f"ip -6 -n {SANDBOX} rule add priority 5 iif eth0 lookup 77",
        f"ip -n {SANDBOX} rule add priority 5 fwmark 1 lookup 77",
        f"ip netns exec {SANDBOX} sysctl -qw net.ipv4.conf.eth0.rp_filter=1",
        f"ip netns exec {SANDBOX} nft flush ruleset",
        f"ip netns exec {SANDBOX} nft add table ip6 hivemesh",
        f"ip netns delete {OVERLAY}; ip netns delete {SANDBOX}",
    ],
)
def test_damage_is_seen_repaired_and_told(applier: Applier, damage: str) -> None:
    plans = (overlay(), sandbox())
    sh(damage)
    assert [line for plan in plans for line in applier.differences(plan)]
    for plan in plans:
        applier.forget(plan.namespace)
    outcomes = [applier.ensure(plan) for plan in plans]
    assert [o.failed for o in outcomes] == [(), ()]
    assert [o.repaired for o in outcomes] != [(), ()]
    assert [line for plan in plans for line in applier.differences(plan)] == []
    assert [applier.ensure(plan).changed for plan in plans] == [0, 0]
    # a process without memory comes to the same
    assert [Applier().ensure(plan).changed for plan in plans] == [0, 0]


def test_namespace_without_its_name_is_pinned_again_with_all_that_is_inside(applier: Applier) -> None:
    before = sh(f"ip -n {OVERLAY} -o link")
    sh(f"ip netns delete {OVERLAY}")
    outcome = applier.ensure(overlay())
    assert (outcome.created, outcome.repaired) == (False, ("the namespace had lost its name",))
    assert sh(f"ip -n {OVERLAY} -o link") == before


def test_strangers_in_a_sandbox_are_left_alone(applier: Applier) -> None:
    sh(f"ip netns exec {SANDBOX} nft add table inet theirs; ip -n {SANDBOX} route add 192.0.2.0/24 dev eth0")
    sh(f"ip -n {SANDBOX} neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud reachable")
    applier.forget(SANDBOX)
    assert applier.ensure(sandbox()).changed == 0
    assert "theirs" in sh(f"ip netns exec {SANDBOX} nft list tables")
    assert sh(f"ip -n {SANDBOX} route show 192.0.2.0/24")


# --- refusals --------------------------------------------------------------------------------------------------------


def test_namespace_of_somebody_else_is_not_touched() -> None:
    sh(f"ip netns add {OVERLAY}; ip -n {OVERLAY} link add br0 type bridge")
    applier = Applier()
    with pytest.raises(Conflict, match="not ours"):
        applier.ensure(overlay())
    with pytest.raises(Conflict, match="not ours"):
        applier.remove(OVERLAY)
    assert [link["ifname"] for link in shown(f"ip -j -n {OVERLAY} link")] == ["lo", "br0"]
    sh(f"ip netns delete {OVERLAY}")
    assert applier.ensure(overlay()).failed == ()


def test_namespace_of_another_object_of_ours_is_not_touched() -> None:
    netns.create(OVERLAY, "hivemesh/network/other")
    with pytest.raises(Conflict, match="belongs to hivemesh/network/other"):
        Applier().ensure(overlay())


def test_one_bad_object_does_not_stop_the_rest() -> None:
    applier = Applier()
    applier.ensure(overlay())
    bad = {
        Route(destination=ip_network("192.0.2.0/24"), link="eth0", gateway=ip_address("203.0.113.1")),
        Route(destination=ip_network("2001:db8::/64"), link="eth9"),
    }
    plan = replace(sandbox(), routes=sandbox().routes | bad, sysctls={"net/ipv4/conf/eth0/nothing": "1"})
    outcome = applier.ensure(plan)
    assert len(outcome.failed) == 3
    assert any("192.0.2.0/24 in table 254: Network is unreachable" in text for text in outcome.failed)
    assert any("eth9" in text for text in outcome.failed)
    assert any("nothing" in text for text in outcome.failed)
    assert len(applier.differences(plan)) == 3
    assert len(applier.ensure(plan).failed) == 3  # tried again
    assert applier.ensure(sandbox()).failed == ()
    assert applier.differences(sandbox()) == []


def test_sandbox_waits_for_its_overlay() -> None:
    applier = Applier()
    outcome = applier.ensure(sandbox())
    assert any("no bridge br0 in namespace 1-overlay" in text for text in outcome.failed)
    applier.ensure(overlay())
    assert applier.ensure(sandbox()).failed == ()
    assert applier.differences(sandbox()) == []


def test_vni_in_use_elsewhere_is_named(applier: Applier) -> None:
    other = replace(overlay(), namespace="1-other", mark="hivemesh/network/n2")
    outcome = applier.ensure(other)
    assert any("vxlan0: File exists" in text for text in outcome.failed)
    applier.remove(SANDBOX)
    applier.remove(OVERLAY)
    assert applier.ensure(other).failed == ()
    assert applier.differences(other) == []


@pytest.mark.parametrize(
    "what", ["add_link", "set_link", "set_address", "set_fdb", "set_neighbor", "set_route", "set_rule", "ensure_table",
             "ensure_settings"],
)  # fmt: skip
def test_refused_change_is_reported_and_tried_again(what: str) -> None:
    faults = Faults()
    applier = Applier(faults)
    plans = (overlay(), sandbox())
    faults.fail_next(what, errno.EBUSY)
    first = [applier.ensure(plan) for plan in plans]
    assert any("busy" in text for outcome in first for text in outcome.failed)
    for plan in plans:
        outcome = applier.ensure(plan)
        assert outcome.failed == ()
        assert outcome.repaired == ()  # that was our own failure, nobody's damage
    assert [line for plan in plans for line in applier.differences(plan)] == []


def test_namespace_that_cannot_be_made_is_an_error_and_made_later() -> None:
    faults = Faults()
    applier = Applier(faults)
    faults.fail_next("create", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        applier.ensure(overlay())
    assert netns.names() == []
    assert applier.ensure(overlay()).created


# --- the host --------------------------------------------------------------------------------------------------------


def host() -> NamespacePlan:
    return NamespacePlan(
        namespace=HOST,
        mark="",
        links=(Bridge(name="hm_gwbridge", mtu=1500, mac=MAC("02:42:ac:12:00:01"), alias="hivemesh/host"),),
        addresses=frozenset({LinkAddress(link="hm_gwbridge", address=ip_interface("172.18.0.1/16"))}),
        sysctls={"net/ipv4/conf/hm_gwbridge/route_localnet": "1"},
        tables=(TABLE,),
    )


def gateway(namespace: str, number: int) -> NamespacePlan:
    end = VethEnd(namespace=HOST, name=f"hm-ve-{number}", master="hm_gwbridge", isolated=True, alias="hivemesh/sandbox")
    return NamespacePlan(
        namespace=namespace,
        mark=f"hivemesh/sandbox/{number}",
        links=(Veth(name="eth1", mac=MAC(f"02:42:ac:12:00:{number:02x}"), mtu=1500, outer=end),),
    )


def test_host_loses_what_is_ours_and_nothing_else() -> None:
    sh("ip link add theirs type bridge; ip link add veth-theirs type veth peer name v2; ip link set theirs up")
    sh("ip addr add 192.0.2.1/24 dev theirs; ip route add 203.0.113.0/24 dev theirs; ip rule add priority 7 lookup 77")
    sh("nft add table inet theirs")
    before = sh("ip -o link; ip addr show theirs; ip route show table all; ip rule; nft list ruleset")
    applier = Applier()
    for plan in (host(), gateway("box", 3)):
        assert applier.ensure(plan).failed == ()
    (port,) = shown("ip -j -d link show hm-ve-3")
    assert (port["master"], port["linkinfo"]["info_slave_data"]["isolated"]) == ("hm_gwbridge", True)
    assert applier.differences(host()) == []
    assert Applier().ensure(host()).changed == 0
    applier.remove("box")
    applier.remove(HOST)
    assert sh("ip -o link; ip addr show theirs; ip route show table all; ip rule; nft list ruleset") == before
    sh("nft delete table inet theirs; ip rule delete priority 7")


def test_link_of_somebody_else_under_our_name_is_named_and_kept() -> None:
    sh("ip link add hm_gwbridge type dummy || ip link add hm_gwbridge type veth peer name other")
    outcome = Applier().ensure(host())
    assert any("hm_gwbridge" in text and "not ours" in text for text in outcome.failed)
    assert sh("ip link show hm_gwbridge")


def test_remade_bridge_gets_its_ports_back() -> None:
    applier = Applier()
    boxes = [gateway(f"box{number}", number) for number in (3, 4)]
    for plan in (host(), *boxes):
        assert applier.ensure(plan).failed == ()
    assert applier.affected(HOST) == (HOST, "box3", "box4")
    sh("ip link delete hm_gwbridge")
    applier.forget(HOST)
    for plan in (host(), *boxes):
        assert applier.ensure(plan).repaired
    assert len(shown("ip -j link show master hm_gwbridge")) == 2


# --- size ------------------------------------------------------------------------------------------------------------


def test_ten_thousand_peers_are_all_there_and_one_more_is_one_change() -> None:
    macs = [MAC(f"02:42:0a:01:{i >> 8:02x}:{i & 255:02x}") for i in range(10_000)]
    plan = replace(
        overlay(),
        fdb=frozenset(
            FdbEntry(link="vxlan0", mac=mac, vtep=IPv4Address(0x7F000100 + i % 200)) for i, mac in enumerate(macs)
        ),
        neighbors=frozenset(
            Neighbor(link="vxlan0", address=base + i, mac=mac)
            for i, mac in enumerate(macs)
            for base in (IPv4Address("10.1.0.0"), IPv6Address("fd00:1::1:0"))
        ),
    )
    applier = Applier()
    assert applier.ensure(plan).failed == ()
    assert sh(f"bridge -n {OVERLAY} fdb show dev vxlan0 | grep -c dst").strip() == "10000"
    assert sh(f"ip -n {OVERLAY} neigh show nud permanent | wc -l").strip() == "20000"
    more = replace(plan, fdb=plan.fdb | overlay().fdb)
    assert applier.ensure(more).changed == 1


def test_peer_that_goes_is_forgotten_by_the_bridge_too(applier: Applier) -> None:
    applier.ensure(overlay())
    sh(f"bridge -n {OVERLAY} fdb replace {PEER} dev vxlan0 master dynamic")
    applier.ensure(replace(overlay(), fdb=frozenset()))
    assert PEER not in sh(f"bridge -n {OVERLAY} fdb show")
