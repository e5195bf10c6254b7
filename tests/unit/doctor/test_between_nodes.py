"""Who heard whom, and what follows: a table of what is lost, where, and the one finding it makes."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace

from hivemesh.doctor.registry import diagnose
from hivemesh.model.ids import NodeID
from hivemesh.wire.doctor import (
    Call,
    Closed,
    Finding,
    Heard,
    Inspected,
    Link,
    Machine,
    Membership,
    NodeFacts,
    Place,
    Podman,
    Seen,
    StoreFacts,
    Unlike,
)

NOW = 1_000_000.0
DAY = 86400.0
ALL = tuple(range(8))
LARGE = (1, 4, 6)
COUNT = 4


def place(number: int) -> Place:
    return Place(
        id=NodeID(f"node{number}"),
        name=f"n{number}",
        vtep=IPv4Address(f"192.0.2.{number}"),
        inside=IPv4Address(f"10.0.0.{number}"),
        manager="192.0.2.1:2377" if number == 1 else "",
    )


def facts(number: int) -> NodeFacts:
    address = IPv4Interface(f"192.0.2.{number}/24")
    return NodeFacts(
        machine=Machine(
            name=f"n{number}",
            member=True,
            links=(Link(name="eth0", mtu=1500, addresses=(address,)),),
            podman=Podman(version="4.9.3", runtime="crun"),
            nameservers=(IPv4Address("192.0.2.53"),),
        ),
        membership=Membership(
            role="worker",
            certificate=(NOW - 10 * DAY, NOW + 80 * DAY),
            root=NOW + 7000 * DAY,
            underlay=address.ip,
            needs=1500,
            subnets={"ingress": (IPv4Network("10.0.0.0/24"),)},
        ),
        heard=tuple(
            Heard(node=place(n).id, underlay=ALL, largest=1500, overlay=ALL, bare=ALL, full=LARGE)
            for n in range(1, COUNT + 1)
            if n != number
        ),
        calls=(Call(manager="192.0.2.1:2377"),),
        time=NOW,
    )


class Swarm:
    """Four nodes that are well, until told otherwise."""

    def __init__(self) -> None:
        self.nodes = {n: Seen(place=place(n), facts=facts(n)) for n in range(1, COUNT + 1)}
        self.store = StoreFacts(seconds=0.01, managers={"n1": "ready", "n2": "ready", "n3": "ready"})

    def facts(self, number: int) -> NodeFacts:
        found = self.nodes[number].facts
        assert found is not None
        return found

    def change(self, number: int, **changed: Any) -> None:
        self.nodes[number] = replace(self.nodes[number], facts=replace(self.facts(number), **changed))

    def member(self, number: int, **changed: Any) -> None:
        self.change(number, membership=replace(self.facts(number).membership, **changed))

    def machine(self, number: int, **changed: Any) -> None:
        self.change(number, machine=replace(self.facts(number).machine, **changed))

    def heard(self, sender: int, receiver: int, **changed: Any) -> None:
        ears = self.facts(receiver).heard
        mine = place(sender).id
        self.change(receiver, heard=tuple(replace(h, **changed) if h.node == mine else h for h in ears))

    def silent(self, sender: int, receiver: int) -> None:
        self.heard(sender, receiver, underlay=(), largest=0, overlay=(), bare=(), full=())

    def found(self) -> list[Finding]:
        inspected = Inspected(nodes=tuple(self.nodes.values()), store=self.store)
        return list(diagnose("n1", self.facts(1).machine, inspected).findings)


def test_swarm_that_is_well_raises_nothing() -> None:
    assert Swarm().found() == []


def one_way(swarm: Swarm) -> None:
    swarm.silent(1, 2)


def both_ways(swarm: Swarm) -> None:
    swarm.silent(1, 2)
    swarm.silent(2, 1)


def nobody_reaches(swarm: Swarm) -> None:
    for sender in (1, 2, 4):
        swarm.silent(sender, 3)


def reaches_nobody(swarm: Swarm) -> None:
    for receiver in (1, 2, 4):
        swarm.silent(3, receiver)


def inside(swarm: Swarm) -> None:
    swarm.heard(1, 2, overlay=(), bare=(), full=())


def closed(swarm: Swarm) -> None:
    inside(swarm)
    swarm.machine(2, incoming=(Closed(where="iptables, chain INPUT", tool="ufw", ports=("4789/udp",)),))


def strict(swarm: Swarm) -> None:
    inside(swarm)
    (link,) = swarm.facts(2).machine.links
    swarm.machine(2, links=(replace(link, strict=True),))


def checksum(swarm: Swarm) -> None:
    swarm.heard(1, 2, overlay=(), full=())
    swarm.member(2, bad_checksums=11)


def narrow(swarm: Swarm) -> None:
    swarm.heard(1, 2, largest=1400, full=())


def cut_into_pieces(swarm: Swarm) -> None:
    swarm.heard(1, 2, largest=1400)


def narrow_inside(swarm: Swarm) -> None:
    swarm.heard(1, 2, full=())


def lossy(swarm: Swarm) -> None:
    swarm.heard(1, 2, underlay=(0, 2, 4, 6), overlay=(1, 3, 5, 7))


def refused(swarm: Swarm) -> None:
    swarm.silent(1, 2)
    swarm.change(1, refused={place(2).id: "Network is unreachable"})


def gone(swarm: Swarm) -> None:
    swarm.nodes[4] = Seen(place=place(4), unseen="it is down: heartbeat failure")
    for receiver in (1, 2, 3):
        swarm.silent(4, receiver)


def deaf(swarm: Swarm) -> None:
    swarm.change(4, heard=(), deaf="Operation not permitted")


CASES: dict[Callable[[Swarm], None], tuple[str, str, str, str]] = {
    one_way: ("tunnels", "error", "n1 -> n2", "The other direction works"),
    nobody_reaches: ("tunnels", "error", "* -> n3", "from every other node do not reach n3"),
    reaches_nobody: ("tunnels", "error", "n3 -> *", "from n3 do not reach any other node"),
    inside: ("overlay", "error", "n1 -> n2", "lost behind it"),
    closed: ("overlay", "error", "n1 -> n2", "iptables, chain INPUT drops what comes to UDP port 4789"),
    strict: ("overlay", "error", "n1 -> n2", "reverse path filter"),
    checksum: ("checksums", "error", "n1 -> n2", "n2 counted 11 wrong checksums"),
    narrow: ("path-mtu", "error", "n1 -> n2", "carries packets of 1400 bytes, and tunnels send up to 1500"),
    cut_into_pieces: ("path-mtu", "warning", "n1 -> n2", "cut into pieces"),
    narrow_inside: ("large", "error", "n1 -> n2", "connections open and hang"),
    lossy: ("loss", "warning", "n1 -> n2", "3 of 7 packets"),
    refused: ("send", "error", "n1 -> n2", "n1 cannot send to n2: Network is unreachable"),
    gone: ("nodes", "error", "n4", "it is down: heartbeat failure"),
    deaf: ("nodes", "warning", "n4", "could not listen"),
}


@pytest.mark.parametrize("spoil", CASES, ids=lambda spoil: spoil.__name__)
def test_what_is_lost_is_named_once_with_where_and_why(spoil: Callable[[Swarm], None]) -> None:
    swarm = Swarm()
    spoil(swarm)
    check, severity, where, words = CASES[spoil]
    (finding,) = swarm.found()
    assert (finding.check, finding.severity, finding.where) == (check, severity, where)
    assert words in f"{finding.what} {finding.why}"
    assert finding.remedy


def test_two_directions_that_are_lost_are_two_findings() -> None:
    swarm = Swarm()
    both_ways(swarm)
    assert {finding.where for finding in swarm.found()} == {"n1 -> n2", "n2 -> n1"}


def test_one_lost_probe_and_late_listeners_are_no_loss() -> None:
    swarm = Swarm()
    swarm.heard(1, 2, underlay=(3, 4, 5, 6, 7), overlay=(0, 1, 2, 4, 5, 6, 7), bare=(5, 6), full=(6,))
    assert swarm.found() == []


def test_link_too_narrow_for_the_tunnels_is_named_once_at_its_node() -> None:
    swarm = Swarm()
    (link,) = swarm.facts(2).machine.links
    swarm.machine(2, links=(replace(link, mtu=1400),))
    for receiver in (1, 3, 4):
        swarm.heard(2, receiver, largest=1380, full=())
    (finding,) = swarm.found()
    assert (finding.check, finding.where) == ("underlay", "n2")


def test_node_without_an_ingress_address_is_judged_by_the_underlay_alone() -> None:
    swarm = Swarm()
    swarm.nodes[2] = replace(swarm.nodes[2], place=replace(place(2), inside=None))
    for other in (1, 3, 4):
        swarm.heard(other, 2, overlay=(), bare=(), full=())
        swarm.heard(2, other, overlay=(), bare=(), full=())
    assert swarm.found() == []


MEMBERS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no session": ({"session": "refused"}, "session", "error", "refused"),
    "drift that stays": (
        {"drift": tuple(Unlike(text=text, cause=f"{text} went", proof="ip a") for text in "abcd")},
        "drift",
        "error",
        "host: a; host: b; host: c; and 1 more",
    ),
    "drift that was repaired": ({"healed": (Unlike(text="a"),)}, "drift", "warning", "host: a"),
    "somebody fights us": ({"repairs": 7}, "drift", "warning", "7 repairs"),
    "somebody is ahead of us": ({"repairs": 7, "drift": (Unlike(text="a"),)}, "drift", "warning", "put right: host: a"),
    "server that does not listen": (
        {"silent": (Unlike(namespace="s", text="web.1: nobody listens"),)},
        "servers",
        "warning",
        "web.1: nobody",
    ),
    "firewall in a namespace of ours": (
        {"strangers": (Unlike(namespace="s", text="table inet x drops"),)},
        "strangers",
        "warning",
        "namespace s, table",
    ),
    "wrong names": ({"names": ("web in sandbox s: 10.0.0.9",)}, "resolver", "error", "10.0.0.9"),
    "certificate at its end": (
        {"certificate": (NOW - 80 * DAY, NOW + 10 * DAY)},
        "certificates",
        "warning",
        "10.0 days",
    ),
    "certificate expired": ({"certificate": (NOW - 91 * DAY, NOW - DAY)}, "certificates", "error", "expired 1.0 days"),
    "root at its end": ({"root": NOW + 100 * DAY}, "certificates", "warning", "100 days"),
    "data path address lost": ({"underlay": IPv4Address("192.0.2.99")}, "underlay", "error", "192.0.2.99"),
    "manager broken": ({"store": "no majority"}, "manager", "error", "no majority"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_node_that_is_not_well_is_named(name: str) -> None:
    changed, check, severity, words = MEMBERS[name]
    swarm = Swarm()
    swarm.member(2, **changed)
    (finding,) = swarm.found()
    assert (finding.check, finding.severity, finding.where) == (check, severity, "n2")
    assert words in finding.what


def test_route_that_clashes_with_a_network_is_named() -> None:
    swarm = Swarm()
    swarm.machine(2, routes=(("tun0", IPv4Network("10.0.0.128/25")), ("eth0", IPv4Network("192.0.2.0/24"))))
    (finding,) = swarm.found()
    assert (finding.check, finding.where) == ("routes", "n2")
    assert "10.0.0.128/25 (by tun0) clashes with the network ingress" in finding.what


def test_manager_that_is_not_reached_is_an_error_when_it_is_the_only_one() -> None:
    swarm = Swarm()
    swarm.change(2, calls=(Call(manager="192.0.2.1:2377", error="refused"),))
    assert [(f.check, f.severity, f.where) for f in swarm.found()] == [("control-port", "error", "n2")]
    swarm.change(2, calls=(Call(manager="192.0.2.1:2377", error="refused"), Call(manager="192.0.2.3:2377")))
    assert [(f.check, f.severity, f.where) for f in swarm.found()] == [("control-port", "warning", "n2")]


@pytest.mark.parametrize(("skew", "severity"), [(0.5, None), (-1.9, None), (30.0, "warning"), (-7200.0, "error")])
def test_clock_is_named_once_it_is_off_by_seconds(skew: float, severity: str | None) -> None:
    swarm = Swarm()
    swarm.nodes[2] = replace(swarm.nodes[2], skew=skew)
    assert [(f.check, f.severity, f.where) for f in swarm.found()] == ([("clocks", severity, "n2")] if severity else [])


@pytest.mark.parametrize(
    ("store", "severity", "words"),
    [
        (StoreFacts(error="no majority"), "error", "no majority"),
        (StoreFacts(seconds=2.5, managers={"n1": "ready"}), "warning", "2.5 s"),
        (StoreFacts(managers={"n1": "ready", "n2": "ready"}), "warning", "two managers"),
        (StoreFacts(managers={"n1": "ready", "n2": "down", "n3": "ready"}), "warning", "not ready: n2"),
    ],
)
def test_store_that_is_not_well_is_named(store: StoreFacts, severity: str, words: str) -> None:
    swarm = Swarm()
    swarm.store = store
    (finding,) = swarm.found()
    assert (finding.check, finding.severity) == ("store", severity)
    assert words in finding.what


def test_what_machines_have_in_common_is_told_once_with_all_names() -> None:
    swarm = Swarm()
    for number in (1, 2, 3):
        swarm.machine(number, sctp=False)
    (finding,) = swarm.found()
    assert finding.where == "n1, n2, n3"


def test_two_nodes_with_one_name_are_told_of() -> None:
    swarm = Swarm()
    swarm.nodes[2] = replace(swarm.nodes[2], place=replace(place(2), name="n3"))
    assert [f.check for f in swarm.found()] == ["names-of-nodes"]
