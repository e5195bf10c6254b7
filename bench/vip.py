"""What a virtual address costs: a task on n1 asks a task on n2, by its own address and by its service's VIP.

The first way is the yardstick: a network whose only service is reached by its tasks' addresses (`dnsrr`), so that no
sandbox has anything to balance and nothing is tracked. The second way has the balancer beside it, unused. A service
whose label names nftables is balanced by that alone; one without a label by sockets, where the kernel allows it.
"""

import os
from functools import partial
from pathlib import Path

from bench import cost, rig
from bench.mesh import ROUNDS, requests, stream
from bench.report import Measure, alternate, compare
from hivemesh.lab.lab import Lab

IPVS = Path("/proc/net/ip_vs")
"""There once a kernel that has IPVS has loaded it."""
PLAIN, BALANCED = "plain", "balanced"


def main(bed: Lab) -> None:
    """Prints a table each for keep-alive, a connection per request, and one stream; then what the first two cost."""
    services = {"direct": (PLAIN, ""), "nftables": (BALANCED, "nftables")}
    said = dict(bed.node("n1").api("GET", "/info")["FirewallBackend"]["Info"])["Socket balancing"]
    if said == "on":
        services["sockets"] = (BALANCED, "")
    else:
        print(f"sockets are not balanced here ({said}): only nftables is measured")
    if IPVS.exists():
        services["ipvs"] = (BALANCED, "ipvs")
    else:
        print("this kernel has not loaded IPVS (modprobe ip_vs): only the nftables balancer is measured")
    for network in (PLAIN, BALANCED):
        rig.network(bed, network)
    for name, (network, engine) in services.items():
        spec = rig.on_network(rig.service(f"vip-{name}", 1, [], "n2"), network)
        spec["EndpointSpec"] = {"Mode": "vip" if network == BALANCED else "dnsrr"}
        spec["Labels"] = {"hivemesh.balancer": engine} if engine else {}
        rig.create(bed, spec)
    for network in (PLAIN, BALANCED):
        spec = rig.on_network(rig.service(f"asks-{network}", 1, [], "n1"), network)
        rig.create(bed, spec | {"EndpointSpec": {"Mode": "vip" if network == BALANCED else "dnsrr"}})
    names = [f"vip-{name}" for name in services] + [f"asks-{network}" for network in (PLAIN, BALANCED)]
    for name in names:
        rig.await_running(bed, name, 1)
    try:
        _measure(bed, services)
    finally:
        for name in names:
            rig.remove(bed, name)
        for network in (PLAIN, BALANCED):
            rig.remove_network(bed, network)


def _measure(bed: Lab, services: dict[str, tuple[str, str]]) -> None:
    targets = {
        name: rig.address_on(rig.running(bed, f"vip-{name}")[0], network) for name, (network, _) in services.items()
    }
    asking = {network: rig.inside(rig.running(bed, f"asks-{network}")[0]) for network in (PLAIN, BALANCED)}
    routes = {
        "task's address": (PLAIN, targets["direct"]),
        "task's address, a VIP beside it": (BALANCED, targets["nftables"]),
        "VIP, nftables": (BALANCED, rig.vip(bed, "vip-nftables")),
    }
    if "sockets" in services:
        routes["VIP, sockets"] = (BALANCED, rig.vip(bed, "vip-sockets"))
    if "ipvs" in services:
        routes["VIP, IPVS"] = (BALANCED, rig.vip(bed, "vip-ipvs"))
    n1 = bed.node("n1")
    for inside in asking.values():
        rig.allow_many_connections(n1, inside)
    for title, unit, digits, way, goal in (
        ("keep-alive", "requests/s", 0, partial(requests, close=False), "0.94 (Swarm with IPVS: 0.73)"),
        ("a connection per request", "requests/s", 0, partial(requests, close=True), "0.90 (Swarm with IPVS: 0.60)"),
        ("one TCP stream", "Gbit/s", 2, stream, "prototype: 0.92"),
    ):
        ways: dict[str, Measure] = {
            name: way(n1, f"http://{address}", inside=asking[network]) for name, (network, address) in routes.items()
        }
        compare(f"{title}: task on n1 -> task on n2", unit, alternate(ways, ROUNDS), f"goal for a VIP: {goal}", digits)
    cost.pin(bed, [rig.running(bed, f"vip-{name}")[0] for name in services], max(os.sched_getaffinity(0)))
    cost.compare(
        "task on n1 -> task on n2",
        {
            name: cost.Way(machine=n1, host=address, port=80, inside=asking[network])
            for name, (network, address) in routes.items()
        },
        "goal for a VIP: 0.94, 0.90",
    )
