"""`hivemesh doctor` in a lab: it raises nothing while all is well, and names each fault, with where and why."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from names_asked import askers, network, service
from outside import eventually

from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import Machine

pytestmark = pytest.mark.scenario


@pytest.fixture(scope="module")
def swarm() -> Iterator[Lab]:
    """Three nodes, with a task on each that can ask for names."""
    lab = Lab(f"t{os.getpid()}-doctor", LabSettings(engine="process"))
    lab.up()
    try:
        network(lab, "mynet")
        service(lab, "web", "--network", "mynet", replicas=3)
        askers(lab, "web", 3)
        yield lab
    finally:
        lab.down()


def examined(machine: Machine, *options: str) -> tuple[int, Any]:
    done = machine.exec("timeout", "30", "hivemesh", "doctor", "--json", *options, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def serious(found: Any) -> list[tuple[str, str]]:
    """Check and place of all that is more than a note."""
    return [(f["check"], f["where"]) for f in found["findings"] if f["severity"] != "note"]


DROPS = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in "


@dataclass(frozen=True)
class Fault:
    """Made on `node` and undone there; the first finding is of `check` at `where`, with `word` in its words."""

    name: str
    node: str
    make: tuple[str, ...]
    undo: tuple[str, ...]
    check: str
    where: str
    word: str


UNCUT = ("nft delete table inet cut",)
UNCUT_CARD = ("nft delete table netdev cut",)


def at_card(rule: str, device: str = "eth0") -> tuple[str, ...]:
    """A rule in front of all that a machine sees: lost before it came in."""
    hook = f"{{ type filter hook ingress device {device} priority 0; }}"
    return (f"nft add table netdev cut; add chain netdev cut in {hook}; add rule netdev cut in {rule}",)


FAULTS = (
    Fault("one direction lost between machines", "n2",
          at_card("ip saddr 198.51.100.11 udp dport 4789 drop"), UNCUT_CARD,
          "tunnels", "n1 -> n2", "The other direction works"),
    Fault("tunnels lost on the way to a machine", "n3", at_card("udp dport 4789 drop"), UNCUT_CARD,
          "tunnels", "* -> n3", "every other node"),
    Fault("firewall of the machine drops tunnels", "n2", (f"nft {DROPS} udp dport 4789 drop",), UNCUT,
          "overlay", "* -> n2", "lost behind it"),
    Fault("firewall whose policy drops tunnels", "n2",
          ("nft add table inet cut; add chain inet cut in { type filter hook input priority 0; policy drop; }; "
           "add rule inet cut in tcp dport 2377 accept; add rule inet cut in ct state established accept",), UNCUT,
          "overlay", "* -> n2", "table inet cut, chain in drops what comes to UDP port 4789"),
    Fault("half of the packets lost", "n3",
          at_card("ip saddr 198.51.100.12 udp dport 4789 numgen inc mod 2 0 drop"), UNCUT_CARD,
          "loss", "n2 -> n3", "were lost"),
    Fault("large packets lost on the way", "n1", at_card("ip saddr 198.51.100.13 udp length > 1400 drop"), UNCUT_CARD,
          "path-mtu", "n3 -> n1", "carries packets of 1400 bytes"),
    Fault("route that refuses", "n2", ("ip route add blackhole 198.51.100.13/32",),
          ("ip route del blackhole 198.51.100.13/32",), "send", "n2 -> n3", "Invalid argument"),
    Fault("route that clashes with a network", "n2", ("ip route add 10.0.0.128/25 via 198.51.100.1",),
          ("ip route del 10.0.0.128/25",), "routes", "n2", "clashes with the network ingress"),
    Fault("managers not reached", "n3",
          ("nft add table inet cut; add chain inet cut out { type filter hook output priority 0; }; "
           "add rule inet cut out tcp dport 2377 tcp flags & (syn | ack) == syn drop",), UNCUT,
          "nodes", "n3", "port 2377/tcp"),
    Fault("resolver that is deaf", "n2", ("sh kill -STOP $(pgrep -f [h]ivemesh-resolver)",),
          ("sh kill -CONT $(pgrep -f [h]ivemesh-resolver)",), "resolver", "n2", "the resolver does not answer"),
    Fault("somebody who fights for our rules", "n3",
          ("sh for i in $(seq 60); do nft flush chain inet hivemesh as_node; sleep 0.05; done >/dev/null 2>&1 &",), (),
          "drift", "n3", "put right"),
)  # fmt: skip


def test_healthy_swarm_raises_nothing_from_any_node(swarm: Lab) -> None:
    for node in swarm.nodes[:2]:  # a manager, a worker
        code, found = examined(node)
        assert serious(found) == [], found["findings"]
        assert code == 0
        assert found["nodes"] == ["n1", "n2", "n3"]
        assert len(found["matrix"]) == 6
        assert all((way["underlay"], way["overlay"], way["largest"]) == (True, True, 1500) for way in found["matrix"])


@pytest.mark.soak
def test_swarm_that_is_being_changed_raises_nothing_in_200_runs(swarm: Lab) -> None:
    for run in range(200):
        scaled = f"web={3 + run % 7}"
        swarm.nodes[0].exec("docker", "service", "scale", "--detach", scaled)
        _, found = examined(swarm.nodes[run % 3])
        assert serious(found) == [], (run, found["findings"])
    swarm.nodes[0].exec("docker", "service", "scale", "--detach", "web=3")
    askers(swarm, "web", 3)


SLOW = {
    "tunnels lost on the way to a machine",
    "firewall of the machine drops tunnels",
    "route that clashes with a network",
}
"""Each is like another one, or shown without a lab, too."""


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[pytest.mark.soak] if f.name in SLOW else []) for f in FAULTS],
)
def test_fault_is_named_where_it_is(swarm: Lab, fault: Fault) -> None:
    node = swarm.node(fault.node)
    for line in fault.make:
        node.exec(*words(line))
    try:
        code, found = examined(swarm.nodes[0])
    finally:
        for line in fault.undo:
            node.exec(*words(line))
    first = found["findings"][0]
    assert (first["check"], first["where"]) == (fault.check, fault.where)
    assert fault.word in f"{first['what']} {first['why']} {first['remedy']}"
    assert first["proof"]
    assert code == {"warning": 1, "error": 2}[first["severity"]]
    assert {check for check, _ in serious(found)} == {fault.check}


def words(line: str) -> list[str]:
    """`nft` takes its rules as one argument, and so does the shell."""
    program, _, rest = line.partition(" ")
    if program in ("nft", "sh"):
        return [program, rest] if program == "nft" else [program, "-c", rest]
    return line.split()


def test_machine_without_a_daemon_is_looked_at_by_the_command_itself(swarm: Lab) -> None:
    listen = "import socket, time; s = socket.create_server(('', 2377)); time.sleep(60)"
    swarm.client.spawn(["python3", "-c", listen], Path(os.devnull))
    code, found = eventually(lambda: _with_a_taken_port(swarm.client))
    (taken,) = (finding for finding in found["findings"] if finding["check"] == "ports")
    assert code == 2
    assert "port 2377/tcp is taken by python3" in taken["what"]
    assert taken["proof"] == "ss -tlnp 'sport = :2377'"
    assert found["matrix"] == []


def test_member_whose_daemon_was_killed_is_told_of_that_and_of_no_strangers(swarm: Lab) -> None:
    node = swarm.node("n3")
    node.kill_daemon()
    try:
        code, found = examined(node)
        assert (code, serious(found)) == (2, [("session", "n3")])
        assert "hivemeshd does not answer" in found["findings"][0]["what"]
        code, found = examined(swarm.nodes[0])
        assert serious(found) == [("nodes", "n3")]
    finally:
        swarm.restart_daemon("n3")
        swarm.await_ready()


def _with_a_taken_port(machine: Machine) -> tuple[int, Any]:
    code, found = examined(machine)
    assert code == 2
    return code, found
