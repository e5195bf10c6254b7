"""The lab that benchmarks run in, and the services they load."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from bench.ahead import prefer
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import Machine
from hivemesh.lab.node import Node

IMAGE = "localhost/whoami"


@contextlib.contextmanager
def lab(name: str = "bench", nodes: int = 3, engine: str = "podman") -> Iterator[Lab]:
    """A fresh swarm of three nodes, gone afterwards; containers by Podman, or plain processes."""
    bed = Lab(name, LabSettings(nodes=nodes, engine=engine))
    bed.up()
    try:
        for node in bed.nodes:
            for process in node.processes():
                prefer(process.pid)
        yield bed
    finally:
        bed.down()


def service(
    name: str, replicas: int, ports: list[tuple[int, int, str]], node: str = "", image: str = IMAGE
) -> dict[str, Any]:
    """A service's specification; `ports` are (published, target, ingress or host), `node` a host name to stay on."""
    template: dict[str, Any] = {
        "ContainerSpec": {"Image": image, "StopGracePeriod": 1_000_000_000},
        "RestartPolicy": {"Condition": "any", "Delay": 100_000_000},
    }
    if node:
        template["Placement"] = {"Constraints": [f"node.hostname=={node}"]}
    return {
        "Name": name,
        "TaskTemplate": template,
        "Mode": {"Replicated": {"Replicas": replicas}},
        "EndpointSpec": {
            "Ports": [
                {"Protocol": "tcp", "PublishedPort": published, "TargetPort": target, "PublishMode": mode}
                for published, target, mode in ports
            ]
        },
    }


def create(bed: Lab, spec: dict[str, Any]) -> None:
    bed.nodes[0].api("POST", "/services/create", spec)


def remove(bed: Lab, name: str) -> None:
    """Remove a service and wait until its tasks are gone."""
    identifier = bed.nodes[0].api("GET", f"/services/{name}")["ID"]
    bed.nodes[0].api("DELETE", f"/services/{name}")
    until = time.monotonic() + 60
    while any(task["ServiceID"] == identifier for task in bed.nodes[0].api("GET", "/tasks")):
        if time.monotonic() > until:
            raise RuntimeError(f"tasks of {name} do not go away")
        time.sleep(0.02)


def scale(bed: Lab, name: str, replicas: int) -> None:
    found = bed.nodes[0].api("GET", f"/services/{name}")
    found["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas
    bed.nodes[0].api("POST", f"/services/{name}/update?version={found['Version']['Index']}", found["Spec"])


def running(bed: Lab, name: str) -> list[dict[str, Any]]:
    filters = quote(json.dumps({"service": [name], "desired-state": ["running"]}))
    tasks: list[dict[str, Any]] = bed.nodes[0].api("GET", f"/tasks?filters={filters}")
    return [task for task in tasks if task["Status"]["State"] == "running"]


def await_running(bed: Lab, name: str, count: int, timeout: float = 120) -> None:
    until = time.monotonic() + timeout
    while len(running(bed, name)) != count:
        if time.monotonic() > until:
            raise RuntimeError(f"{name} does not reach {count} running tasks")
        time.sleep(0.02)


def network(bed: Lab, name: str) -> None:
    """An overlay network, IPv4 only."""
    bed.nodes[0].api("POST", "/networks/create", {"Name": name, "Driver": "overlay"})


def remove_network(bed: Lab, name: str) -> None:
    bed.nodes[0].api("DELETE", f"/networks/{name}")


def on_network(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """The same specification with its tasks on that network."""
    template = spec["TaskTemplate"] | {"Networks": [{"Target": name}]}
    return spec | {"TaskTemplate": template}


def vip(bed: Lab, name: str) -> str:
    """The first virtual IPv4 address of a service."""
    return str(bed.nodes[0].api("GET", f"/services/{name}")["Endpoint"]["VirtualIPs"][0]["Addr"]).split("/")[0]


def address_on(task: dict[str, Any], name: str) -> str:
    """The IPv4 address of a task on a network."""
    for attachment in task["NetworksAttachments"]:
        if attachment["Network"]["Spec"]["Name"] == name:
            return str(attachment["Addresses"][0]).split("/")[0]
    raise RuntimeError(f"the task is not on network {name}")


def address_on_ingress(task: dict[str, Any]) -> str:
    """The IPv4 address of a task on the ingress network."""
    return address_on(task, "ingress")


def sandbox(task: dict[str, Any]) -> str:
    """The name of a task's network namespace on its node."""
    return str(task["ID"])[:12]


def node_of(bed: Lab, task: dict[str, Any]) -> Node:
    """The node a task runs on."""
    return bed.node(bed.nodes[0].api("GET", f"/nodes/{task['NodeID']}")["Description"]["Hostname"])


def inside(task: dict[str, Any]) -> tuple[str, ...]:
    """What before a command runs it in a task's network namespace, on its node."""
    return ("ip", "netns", "exec", sandbox(task))


def allow_many_connections(machine: Machine, inside: tuple[str, ...] = ()) -> None:
    """Let a client make thousands of connections a second to one address.

    Ports that wait for a minute after each use are soon most of them, and then looking for a free one takes longer than
    all that is to be measured. With these settings a port waits for a second.
    """
    machine.exec(*inside, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=1024 65000")
