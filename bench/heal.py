"""How soon it is right again: after the leader's death, after a partition, after somebody changed what is ours."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import rig
from bench.report import facts, percentile, spread
from hivemesh.lab import faults
from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import LabError
from hivemesh.lab.node import Node

FAILOVERS = 12
PARTITIONS, APART = 6, 30.0
"""Rounds, each of which cuts off all workers, and seconds that it lasts."""
REPAIRS = 5
MANAGERS, WORKERS = 3, 3
SERVICE, PORT = "healed", 8094
SETTLE = 90.0
TABLE = "nft -s list table inet hivemesh | tr -s ' ,\\t' '\\n' | sort"
"""Elements come in any order."""
BREAKS = {
    "the host's table flushed": ("", "nft flush table inet hivemesh", TABLE),
    "the host's ruleset flushed": ("", "nft flush ruleset", TABLE),
    "the gateway bridge deleted": (
        "",
        "ip link del hm_gwbridge",
        "ip -o -4 addr show dev hm_gwbridge | grep -o 'inet [^ ]*'",
    ),
    "the mesh's table deleted": ("ingress_sbox", "nft delete table inet hivemesh", TABLE),
    "the mesh's link deleted": (
        "ingress_sbox",
        "ip link del eth0",
        "ip -o -4 addr show dev eth0 | grep -o 'inet [^ ]*'",
    ),
    "the tunnel deleted": ("1-", "ip link del vxlan0", "bridge fdb show dev vxlan0 state permanent | grep dst | sort"),
    "the overlay's bridge deleted": ("1-", "ip link del br0", "ip -br link show master br0 | wc -l"),
    "a setting changed": ("ingress_sbox", "sysctl -qw net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward"),
}
"""By what happens: where, how, and what shows it."""
PROBE = Path(__file__).with_name("probe.py")
WATCH, PATIENCE = 12, 0.1
"""Seconds that a client asks for; and waits for an answer, since the first packet after a partition must not be one
that is sent again after a second."""
LOOK = """
import json, subprocess, sys, time
command, shown, right = json.load(sys.stdin)
run = lambda text: subprocess.run([*sys.argv[1:], "sh", "-c", text], capture_output=True, text=True).stdout
run(command)
began = time.monotonic()
while run(shown) != right:
    if time.monotonic() > began + 60:
        sys.exit(f"{command}: not repaired within a minute")
print(time.monotonic() - began)
"""


def main() -> None:
    """Prints the seconds; makes a lab of its own, of plain processes."""
    bed = Lab("bench-heal", LabSettings(nodes=MANAGERS + WORKERS, managers=MANAGERS, engine="process"))
    bed.up()
    try:
        workers = bed.nodes[MANAGERS:]
        rig.create(bed, rig.service(SERVICE, 1, [(PORT, 80, "ingress")], node="n1"))
        rig.await_running(bed, SERVICE, 1)
        repairs = [took for node in workers[:1] for took in _repairs(bed, node)]
        heals = [took for number in range(PARTITIONS) for took in _partition(bed, workers, number)]
        failovers = [_failover(bed, number) for number in range(FAILOVERS)]
    finally:
        bed.down()
    rows = (
        (f"leader killed with its etcd, until another leads ({FAILOVERS})", [led for led, _ in failovers], "5"),
        ("… until an order given at that moment is carried out", [done for _, done in failovers], ""),
        (f"{APART:.0f} s partition over, until the node leads to what changed ({len(heals)})", heals, "1"),
        (f"{len(BREAKS)} kinds of damage, until repaired ({len(repairs)})", repairs, "2"),
    )
    facts(
        "until it is right again",
        ("what", "seconds", "p99", "goal"),
        [(what, spread(took, 3), f"{percentile(took, 0.99):.3f}", goal) for what, took, goal in rows],
    )


def _until(look: Callable[[], bool], what: str, pause: float = 0.005, timeout: float = SETTLE) -> float:
    """The moment when it was so."""
    until = time.monotonic() + timeout
    while not look():
        if time.monotonic() > until:
            raise RuntimeError(f"{what}: not within {timeout:.0f} s")
        time.sleep(pause)
    return time.monotonic()


# --- the leader dies


def _nodes(at: Node) -> dict[str, Any]:
    try:
        return {node["Description"]["Hostname"]: node for node in at.api("GET", "/nodes", timeout=5)}
    except (Refused, LabError):  # it starts, or there is no leader to ask
        return {}


def _leader(at: Node) -> str:
    nodes = _nodes(at).items()
    return next((name for name, node in nodes if node.get("ManagerStatus", {}).get("Leader")), "")


def _all_well(bed: Lab) -> bool:
    for manager in bed.nodes[:MANAGERS]:
        nodes = _nodes(manager).values()
        reachable = [n for n in nodes if n.get("ManagerStatus", {}).get("Reachability") == "reachable"]
        if len(nodes) != len(bed.nodes) or any(n["Status"]["State"] != "ready" for n in nodes):
            return False
        if len(reachable) != MANAGERS or not _leader(manager):
            return False
    return True


def _failover(bed: Lab, number: int) -> tuple[float, float]:
    """Seconds until another manager leads, and until a task that was ordered meanwhile has a node."""
    _until(lambda: _all_well(bed), "all nodes are well", 0.1)
    time.sleep(1)
    old = _leader(bed.nodes[0])
    left = next(manager for manager in bed.nodes[:MANAGERS] if manager.name != old)
    victims = [p.pid for p in bed.node(old).processes() if p.runs("hivemeshd") or p.runs("etcd")]
    began = time.monotonic()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    led = _until(lambda: _leader(left) not in ("", old), "another manager leads") - began
    name = f"ordered{number}"
    _until(lambda: _ordered(left, name), "an order is taken")
    done = _until(lambda: _carried_out(left, name), "the order is carried out") - began
    left.api("DELETE", f"/services/{name}")
    bed.restart_daemon(old)
    return led, done


def _ordered(at: Node, name: str) -> bool:
    try:
        at.api("POST", "/services/create", rig.service(name, 1, []))
    except (Refused, LabError):
        return False
    return True


def _carried_out(at: Node, name: str) -> bool:
    tasks = at.api("GET", f'/tasks?filters={{"service":["{name}"]}}')
    return any(task.get("NodeID") for task in tasks)


# --- a partition ends


def _partition(bed: Lab, workers: Sequence[Node], number: int) -> list[float]:
    """Meanwhile the only task moves: seconds until each worker, back again, leads to the new one."""
    _until(lambda: all(_answers(bed, node) for node in workers), "every worker answers", 0.1)
    fault = faults.cut(bed, [node.name for node in workers])
    time.sleep(APART / 3)
    host = f"n{1 + (number + 1) % MANAGERS}"  # its task answers with the name of the machine
    _move(bed, host)
    time.sleep(APART * 2 / 3)
    command = [sys.executable, str(PROBE), f"{WATCH:.0f}/{PATIENCE}"]
    watching = [
        subprocess.Popen(bed.client.command([*command, f"{node.spec.v4.ip}:{PORT}"]), stdout=subprocess.PIPE)
        for node in workers
    ]
    time.sleep(0.5)
    mended = time.time()
    faults.mend(bed, fault)
    found = []
    for node, asking in zip(workers, watching, strict=True):
        (seen,) = json.loads(asking.communicate()[0]).values()
        if host not in seen:
            raise RuntimeError(f"{node.name} does not lead to what changed, {WATCH:.0f} s after the partition")
        found.append(seen[host][0] - mended)
    return found


def _answers(bed: Lab, node: Node) -> bool:
    done = bed.client.exec(
        "curl", "--silent", "--output", "/dev/null", "--max-time", "1", f"http://{node.spec.v4.ip}:{PORT}", check=False
    )
    return done.returncode == 0


def _move(bed: Lab, node: str) -> None:
    """The service's one task, elsewhere."""
    found = bed.nodes[0].api("GET", f"/services/{SERVICE}")
    found["Spec"]["TaskTemplate"]["Placement"] = {"Constraints": [f"node.hostname=={node}"]}
    bed.nodes[0].api("POST", f"/services/{SERVICE}/update?version={found['Version']['Index']}", found["Spec"])


# --- somebody changes what is ours


def _repairs(bed: Lab, node: Node) -> list[float]:
    spaces = [line.split()[0] for line in node.exec("ip", "netns").stdout.splitlines()]
    found = []
    for _, (place, command, shown) in itertools.product(range(REPAIRS), BREAKS.values()):
        space = next(name for name in spaces if name.startswith("1-")) if place == "1-" else place
        inside = ("ip", "netns", "exec", space) if space else ()
        time.sleep(0.5)
        right = node.exec(*inside, "sh", "-c", shown).stdout
        # One process breaks it and looks until it is right again, so that nothing else of ours is measured.
        took = node.exec(sys.executable, "-S", "-c", LOOK, *inside, input=json.dumps([command, shown, right])).stdout
        found.append(float(took))
    return found
