"""Two hundred random operations of users, bystanders and fate; then every node's kernel must equal its plan.

The seed is printed; `HIVEMESH_SEED=… pytest tests/scenario/test_random_operations.py` repeats a run's choices.
"""

import os
import random
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from outside import (
    IMAGE,
    as_json,
    backends,
    containers,
    curl,
    drift,
    eventually,
    inside,
    namespaces,
    overlay_of,
    published,
    tasks_of,
    udp,
)

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabError
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario

OPERATIONS = 200
NETWORKS = {"left": "10.81.0.0/24", "right": "10.82.0.0/24"}
MAX_REPLICAS, SERVICES = 3, 4
SETTLE = 40.0
"""Seconds for everything to come to rest. Most of it is for tasks that were killed several times."""


class Chaos:
    """Somebody who does things to a lab, and remembers what users asked for."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.wanted: dict[str, dict[str, Any]] = {}
        self.dead: dict[str, int] = {}  # daemons, and after how many more operations they come back
        self.log: list[str] = []
        self._made = 0

    def act(self) -> None:
        actions: list[tuple[int, Callable[[], str]]] = [
            (5, self.create),
            (8, self.scale),
            (3, self.remove),
            (5, self.kill_container),
            (4, self.flush_table),
            (3, self.delete_table),
            (5, self.delete_fdb_entry),
            (2, self.kill_daemon),
        ]
        (chosen,) = self.random.choices([action for _, action in actions], [weight for weight, _ in actions])
        self.log.append(chosen())
        for name in list(self.dead):
            self.dead[name] -= 1
            if self.dead[name] <= 0:
                self.revive(name)
        time.sleep(self.random.uniform(0, 0.03))

    # -- users --------------------------------------------------------------------------------------------------------

    def create(self) -> str:
        if len(self.wanted) == SERVICES:
            return self.scale()
        self._made += 1
        name, protocol = f"s{self._made}", self.random.choice(["tcp", "udp"])
        networks = self.random.sample(sorted(NETWORKS), self.random.randint(0, 2))
        spec = {
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": IMAGE, "StopGracePeriod": 1_000_000_000},
                "RestartPolicy": {"Condition": "any", "Delay": 50_000_000},
                "Networks": [{"Target": network} for network in networks],
            },
            "Mode": {"Replicated": {"Replicas": self.random.randint(0, MAX_REPLICAS)}},
            "EndpointSpec": {
                "Ports": [{"Protocol": protocol, "TargetPort": 80, "PublishedPort": 8100 + self._made % 50}]
            },
        }
        self.api("POST", "/services/create", spec)
        self.wanted[name] = spec
        return f"create {name} on {networks}"

    def scale(self) -> str:
        if not self.wanted:
            return self.create()
        name = self.random.choice(sorted(self.wanted))
        count = self.random.randint(0, MAX_REPLICAS)
        self.wanted[name]["Mode"]["Replicated"]["Replicas"] = count
        version = self.api("GET", f"/services/{name}")["Version"]["Index"]
        self.api("POST", f"/services/{name}/update?version={version}", self.wanted[name])
        return f"scale {name} to {count}"

    def remove(self) -> str:
        if len(self.wanted) < 2:
            return self.create()
        name = self.random.choice(sorted(self.wanted))
        self.api("DELETE", f"/services/{name}")
        del self.wanted[name]
        return f"remove {name}"

    def api(self, method: str, path: str, body: object = None) -> Any:
        while True:
            try:
                return self.lab.nodes[0].api(method, path, body)
            except Refused as refused:
                if "being prepared" not in str(refused):  # the daemon has just started
                    raise
            time.sleep(0.02)

    # -- fate and bystanders ------------------------------------------------------------------------------------------

    def node(self) -> Node:
        return self.random.choice(self.lab.nodes)

    def kill_container(self) -> str:
        node = self.node()
        running = sorted((pid, name) for name, pid in containers(node).items() if pid)
        if not running:
            return self.scale()
        pid, name = self.random.choice(running)
        node.exec("kill", "-KILL", str(pid), check=False)  # it may have ended by itself
        return f"kill the container {name[:12]} on {node.name}"

    def flush_table(self) -> str:
        return self._nft("flush")

    def delete_table(self) -> str:
        return self._nft("delete")

    def _nft(self, verb: str) -> str:
        node = self.node()
        space = self.random.choice(["", *(name for name in namespaces(node) if not name.startswith("1-"))])
        inside(node, space, "nft", f"{verb} table inet hivemesh", check=False)  # a task may have none, or be gone
        return f"{verb} the table in {space or 'the host'} on {node.name}"

    def delete_fdb_entry(self) -> str:
        node = self.node()
        space = self.random.choice([name for name in namespaces(node) if name.startswith("1-")])
        listed = inside(node, space, "bridge", "fdb", "show", "dev", "vxlan0", check=False)
        entries = [line.split()[0] for line in listed.splitlines() if " dst " in line]
        if not entries:
            return self.scale()
        mac = self.random.choice(entries)
        inside(node, space, "bridge", "fdb", "del", mac, "dev", "vxlan0", "self", check=False)
        return f"delete the FDB entry {mac} in {space} on {node.name}"

    def kill_daemon(self) -> str:
        node = self.node()
        if node.name in self.dead:
            return self.revive(node.name)
        if node is self.lab.nodes[0] or self.random.random() < 0.3:
            kill = self.random.random() < 0.5
            self.lab.restart_daemon(node.name, kill=kill)
            return f"{'kill' if kill else 'stop'} and start the daemon of {node.name}"
        node.kill_daemon()
        self.dead[node.name] = self.random.randint(1, 10)
        return f"kill the daemon of {node.name}"

    def revive(self, name: str) -> str:
        self.lab.restart_daemon(name)
        self.dead.pop(name, None)
        return f"start the daemon of {name}"


def test_two_hundred_random_operations_leave_every_kernel_equal_to_its_plan(lab: Lab) -> None:
    seed = int(os.environ.get("HIVEMESH_SEED") or random.randrange(10**9))
    print(f"HIVEMESH_SEED={seed}")
    for name, subnet in NETWORKS.items():
        config = {"Name": name, "Driver": "overlay", "IPAM": {"Config": [{"Subnet": subnet}]}}
        lab.nodes[0].api("POST", "/networks/create", config)
    chaos = Chaos(lab, seed)
    try:
        for _ in range(OPERATIONS):
            chaos.act()
    finally:
        for name in list(chaos.dead):
            chaos.revive(name)
        print("\n".join(chaos.log))
    lab.await_ready()
    eventually(lambda: assert_settled(lab, chaos.wanted), SETTLE)
    for spec in chaos.wanted.values():
        assert_every_node_answers(lab, spec)


def assert_settled(lab: Lab, wanted: dict[str, dict[str, Any]]) -> None:
    """All of it at one time: what the last operation did may not have been noticed yet by who is asked first."""
    try:
        assert_tasks_as_wanted(lab, wanted)
        assert_kernels_equal_plans(lab)
        assert_ports_lead_to_running_tasks(lab, wanted)
        assert_remote_endpoints_are_known_and_no_others(lab)
        assert_containers_are_the_running_tasks(lab)
        assert_kernels_equal_plans(lab)
    except LabError as error:  # a namespace went while we looked at it
        raise AssertionError(str(error)) from error


def assert_tasks_as_wanted(lab: Lab, wanted: dict[str, dict[str, Any]]) -> None:
    assert {service["Spec"]["Name"] for service in lab.nodes[0].api("GET", "/services")} == set(wanted)
    for name, spec in wanted.items():
        tasks = tasks_of(lab, name)
        running = [task for task in tasks if task.state == task.desired == "running"]
        assert len(running) == spec["Mode"]["Replicated"]["Replicas"], (name, tasks)

    ended = ("shutdown", "failed", "complete", "rejected", "orphaned")
    left = [t for t in tasks_of(lab) if t.desired in ("shutdown", "remove") and t.state not in ended]
    assert left == []


def assert_kernels_equal_plans(lab: Lab) -> None:
    assert {node.name: drift(node) for node in lab.nodes} == {node.name: [] for node in lab.nodes}


# -- the same seen by tools that know no plan -------------------------------------------------------------------------


def assert_ports_lead_to_running_tasks(lab: Lab, wanted: dict[str, dict[str, Any]]) -> None:
    ports = {}
    for name, spec in wanted.items():
        (port,) = spec["EndpointSpec"]["Ports"]
        ports[name] = (port["Protocol"], port["PublishedPort"])
    (subnet4, subnet6) = sorted(subnets_of(lab, "ingress"), key=lambda subnet: subnet.version)
    expected: dict[tuple[str, int, int], set[str]] = {}
    for name, (protocol, port_number) in ports.items():
        for task in tasks_of(lab, name):
            if task.state == "running":
                for text in task.addresses:
                    address = ip_address(text)
                    if address in subnet4 or address in subnet6:
                        expected.setdefault((protocol, port_number, address.version), set()).add(text)
    for node in lab.nodes:
        assert {key: set(slots) for key, slots in backends(node).items()} == expected, node.name
        assert published(node) == set(ports.values()), node.name


def subnets_of(lab: Lab, network: str) -> list[Any]:
    found = lab.nodes[0].api("GET", f"/networks/{network}")
    return [ip_network(config["Subnet"]) for config in found["IPAM"]["Config"]]


def assert_remote_endpoints_are_known_and_no_others(lab: Lab) -> None:
    for name in ("ingress", *NETWORKS):
        identifier = lab.nodes[0].api("GET", f"/networks/{name}")["Id"]
        subnets = subnets_of(lab, name)
        homes = {node.name: endpoints_in(node, subnets) for node in lab.nodes}
        for node in lab.nodes:
            space = overlay_of(node, identifier)
            if space not in namespaces(node):
                assert homes[node.name] == {}, f"{node.name} has endpoints on {name} and no overlay"
                continue
            remote = {
                (mac, str(other.spec.v4.ip)): ips
                for other in lab.nodes
                if other is not node
                for mac, ips in homes[other.name].items()
            }
            fdb = as_json(node, space, "bridge", "-j", "fdb", "show", "dev", "vxlan0")
            assert {(e["mac"], e["dst"]) for e in fdb if "dst" in e} == set(remote), f"{name} on {node.name}"
            known = as_json(node, space, "ip", "-j", "neigh", "show", "dev", "vxlan0", "nud", "permanent")
            pairs = {(n["dst"], n["lladdr"]) for n in known}
            assert pairs == {(ip, mac) for (mac, _), ips in remote.items() for ip in ips}, f"{name} on {node.name}"


def endpoints_in(node: Node, subnets: list[Any]) -> dict[str, set[str]]:
    """MAC to addresses of every interface of the node's sandboxes that is on the network."""
    found: dict[str, set[str]] = {}
    for space in namespaces(node):
        if space.startswith("1-"):
            continue
        for link in as_json(node, space, "ip", "-j", "addr"):
            here = {
                one["local"]
                for one in link["addr_info"]
                if any(ip_address(one["local"]) in subnet for subnet in subnets)
            }
            if here:
                found[link["address"]] = here
    return found


def assert_containers_are_the_running_tasks(lab: Lab) -> None:
    running = [task for task in tasks_of(lab) if task.state == "running"]
    for node in lab.nodes:
        alive = {name[:12] for name, pid in containers(node).items() if pid}
        assert alive == {task.host for task in running if task.node == node.name}, node.name
        sandboxes = {name for name in namespaces(node) if not name.startswith("1-")} - {"ingress_sbox"}
        assert sandboxes == {task.id[:12] for task in running if task.node == node.name}, node.name


def assert_every_node_answers(lab: Lab, spec: dict[str, Any]) -> None:
    (port,) = spec["EndpointSpec"]["Ports"]
    count = spec["Mode"]["Replicated"]["Replicas"]
    ask = udp if port["Protocol"] == "udp" else curl
    for node in lab.nodes if count else ():
        for asked, own in ((node.spec.v4, lab.client.spec.v4), (node.spec.v6, lab.client.spec.v6)):
            answers = ask(lab.client, str(asked.ip), port["PublishedPort"], count)
            assert len({answer.host for answer in answers}) == count
            assert {answer.client for answer in answers} == {str(own.ip)}
