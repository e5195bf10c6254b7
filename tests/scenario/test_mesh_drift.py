"""Somebody else changes what is ours: it is put right within two seconds, and what is theirs stays."""

import time
from functools import partial

import pytest
from outside import (
    Trickle,
    curl,
    drift,
    eventually,
    foreign_table,
    ingress_id,
    inside,
    kernel,
    overlay_of,
    start_service,
    udp,
)

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario

REPAIR = 2.0
"""Seconds until it must be right again."""

BREAKS = {
    "an FDB entry deleted": "ip netns exec $OVERLAY bridge fdb del $PEER_MAC dev vxlan0 dst $PEER_VTEP self",
    "an FDB entry to the wrong node": (
        "ip netns exec $OVERLAY bridge fdb replace $PEER_MAC dev vxlan0 dst 198.51.100.99 self"
    ),
    "a neighbor deleted": "ip -n $OVERLAY neigh del $PEER_IP dev vxlan0",
    "an FDB entry too many": (
        "ip netns exec $OVERLAY bridge fdb add 02:42:0a:63:63:63 dev vxlan0 dst 198.51.100.99 self permanent"
    ),
    "the mesh's table flushed": "ip netns exec ingress_sbox nft flush table inet hivemesh",
    "the mesh's table deleted": "ip netns exec ingress_sbox nft delete table inet hivemesh",
    "a backend deleted": "ip netns exec ingress_sbox nft flush map inet hivemesh backends4",
    "a rule added to our chain": "ip netns exec ingress_sbox nft insert rule inet hivemesh prerouting drop",
    "the host's table flushed": "nft flush table inet hivemesh",
    "the host's table deleted": "nft delete table inet hivemesh",
    "a published port deleted": "nft flush set inet hivemesh published",
    "a task's table deleted": "ip netns exec $TASK nft delete table inet hivemesh",
    "a task's egress table deleted": "ip netns exec $TASK nft delete table netdev hivemesh",
    "a task's veth deleted": "ip -n $TASK link del eth0",
    "a task's way out deleted": "ip -n $TASK link del eth1",
    "the ingress sandbox's veth deleted": "ip -n ingress_sbox link del eth1",
    "the ingress sandbox's overlay veth deleted": "ip -n ingress_sbox link del eth0",
    "the gateway bridge deleted": "ip link del hm_gwbridge",
    "the VXLAN port deleted": "ip -n $OVERLAY link del vxlan0",
    "the overlay's bridge deleted": "ip -n $OVERLAY link del br0",
    "a link taken down": "ip -n ingress_sbox link set eth0 down",
    "a task's address deleted": "ip -n $TASK addr flush dev eth0 scope global",
    "the bridge's address deleted": "ip addr del 172.18.0.1/16 dev hm_gwbridge",
    "a reply route deleted": "ip -n $TASK route flush table 4900",
    "a reply rule deleted": "ip -n $TASK rule del table 4900; ip -6 -n $TASK rule del table 4900",
    "the ingress sandbox removed": "ip netns del ingress_sbox",
    "the overlay removed": "ip netns del $OVERLAY",
}


@pytest.fixture
def places(lab: Lab) -> dict[str, str]:
    """A service with one task on n2 and one elsewhere; the names the breaks use, on n2."""
    running = start_service(lab, "--constraint", "node.hostname!=n1", "--publish", "8053:80/udp")
    (here,) = [task for task in running if task.node == "n2"]
    (peer,) = [task for task in running if task.node == "n3"]
    own = lab.node("n2")
    (peer_ip,) = [text for text in peer.addresses if "." in text]
    return {
        "OVERLAY": overlay_of(own, ingress_id(lab)),
        "TASK": here.id[:12],
        "PEER_IP": peer_ip,
        "PEER_MAC": "02:42:" + ":".join(f"{int(part):02x}" for part in peer_ip.split(".")),
        "PEER_VTEP": str(lab.node("n3").spec.v4.ip),
    }


def test_whatever_somebody_breaks_on_a_node_is_repaired_at_once(lab: Lab, places: dict[str, str]) -> None:
    node = lab.node("n2")
    before = kernel(node)

    def repaired() -> None:
        now = kernel(node)
        for space in before.keys() | now.keys():
            assert now.get(space) == before.get(space), space or "the host"

    def works() -> None:
        for asked, seen in ((node.spec.v4.ip, lab.client.spec.v4.ip), (node.spec.v6.ip, lab.client.spec.v6.ip)):
            answers = curl(lab.client, str(asked), count=2)
            assert len({answer.host for answer in answers}) == 2
            assert {answer.client for answer in answers} == {str(seen)}
            assert len({answer.host for answer in udp(lab.client, str(asked), 8053, count=2)}) == 2

    works()
    failures = []
    for what, command in BREAKS.items():
        done = node.exec("bash", "-ec", command, check=False, environment=places)
        assert done.returncode == 0, f"{what}: {done.stderr}"
        try:
            eventually(repaired, REPAIR)
            eventually(works, REPAIR)
        except AssertionError as error:
            failures.append(f"{what}: {error}")
            eventually(repaired, 65)
    assert failures == []
    assert drift(node) == []


def test_settings_of_the_kernel_are_set_back(lab: Lab, places: dict[str, str]) -> None:
    node = lab.node("n2")
    asked = str(node.spec.v4.ip)
    assert len(curl(lab.client, asked, count=2)) == 2
    for space in ("", "ingress_sbox"):
        for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            inside(node, space, "sysctl", "-qw", f"{setting}=0")
            eventually(partial(_assert_on, node, space, setting), REPAIR)
    assert len(curl(lab.client, asked, count=2)) == 2
    assert len(curl(lab.client, str(node.spec.v6.ip), count=2)) == 2


def _assert_on(node: Node, space: str, setting: str) -> None:
    assert inside(node, space, "sysctl", "-n", setting) == "1\n", f"{setting} in {space or 'the host'}"


def test_tables_of_others_are_never_touched(lab: Lab, places: dict[str, str]) -> None:
    node = lab.node("n2")
    with foreign_table(node, "", "ingress_sbox", places["TASK"]) as others:
        before = others()
        for space in before:
            inside(node, space, "nft", "delete table inet hivemesh")
        eventually(lambda: _assert_no_drift(drift(node)), REPAIR)
        assert others() == before
        assert len({answer.host for answer in curl(lab.client, str(node.spec.v4.ip), count=2)}) == 2


def _assert_no_drift(differences: list[str]) -> None:
    assert differences == []


def test_repair_is_quick_enough_that_few_notice(lab: Lab, places: dict[str, str]) -> None:
    """Flushed tables of the mesh: connections of the moment are lost, those a tenth of a second later are not."""
    node = lab.node("n2")
    with Trickle(lab.client, [str(node.spec.v4.ip)]) as trickle:
        time.sleep(0.1)
        inside(node, "ingress_sbox", "nft", "flush table inet hivemesh")
        broken = time.monotonic()
        time.sleep(0.6)
    late = [attempt for attempt in trickle.failed if attempt.began > broken + 0.3]
    assert late == []
    assert len(trickle.tries) > 20
