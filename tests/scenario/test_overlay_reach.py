"""Tasks on a network of the user's reach each other's addresses, whichever nodes they run on."""

import time
from ipaddress import ip_address
from typing import Any

import pytest

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario


def running_tasks(lab: Lab, count: int) -> list[dict[str, Any]]:
    until = time.monotonic() + 30
    while True:
        tasks: list[dict[str, Any]] = lab.nodes[0].api("GET", "/tasks")
        if [task["Status"]["State"] for task in tasks] == ["running"] * count:
            return tasks
        assert time.monotonic() < until, [task["Status"] for task in tasks]
        time.sleep(0.05)


def test_tasks_on_three_nodes_reach_each_other_in_both_families(lab: Lab) -> None:
    first = lab.nodes[0]
    first.exec("docker", "network", "create", "--driver", "overlay", "--ipv6", "front")
    first.exec("docker", "service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", "mesh",
               "--replicas", "3", "--network", "front", "localhost/whoami")  # fmt: skip
    tasks = running_tasks(lab, 3)
    assert len({task["NodeID"] for task in tasks}) == 3
    addresses = [[a.partition("/")[0] for a in task["NetworksAttachments"][0]["Addresses"]] for task in tasks]
    hosts = {node["ID"]: node["Description"]["Hostname"] for node in first.api("GET", "/nodes")}

    for task, own in zip(tasks, addresses, strict=True):
        node = lab.node(hosts[task["NodeID"]])
        container = task["Status"]["ContainerStatus"]["ContainerID"]
        for other in addresses:
            for asked, mine in zip(other, own, strict=True):
                url = f"http://[{asked}]/" if ip_address(asked).version == 6 else f"http://{asked}/"
                answer = node.exec("docker", "exec", container, "wget", "-qO-", url, timeout=10).stdout
                seen = f"RemoteAddr: [{mine}]:" if ip_address(asked).version == 6 else f"RemoteAddr: {mine}:"
                assert f"IP: {asked}\n" in answer
                assert seen in answer
