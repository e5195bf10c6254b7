"""Traffic of a swarm as its users see it: metrics of a node, new connections and rates of all."""

import json
import re
import subprocess
import threading
from collections import Counter
from typing import Any

import pytest
from names_asked import SLEEP, askers, network, service, vips
from outside import curl, eventually

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario


UNTIL_WE_HANG_UP = '"$@" & read -r; kill $!'
"""A signal would reach only the one who entered the node, not whom it started there."""


class Reader:
    """`hivemesh flows -f --json` on a node; `found` grows."""

    def __init__(self, node: Node) -> None:
        command = node.command(["bash", "-c", UNTIL_WE_HANG_UP, "flows", "hivemesh", "flows", "-f", "--json"])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.found: list[Any] = []
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.found.append(json.loads(line))

    def of(self, verdict: str, service: str) -> list[Any]:
        return [f for f in list(self.found) if f.get("verdict") == verdict and f["target"].get("service") == service]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.reading.join()


def metrics(node: Node) -> Counter[str]:
    """By name and the labels `service` and `outcome`, summed over all others; whole numbers only."""
    found: Counter[str] = Counter()
    for line in node.exec("curl", "-sf", "http://127.0.0.1:2378/metrics").stdout.splitlines():
        if match := re.fullmatch(r"(\w+?)(?:\{(.*)\})? (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            found[" ".join([match[1], *(labels[k] for k in ("service", "outcome") if k in labels)])] += int(
                float(match[3])
            )
    return found


def test_traffic_is_counted_where_it_begins_and_told_with_names_on_all_nodes(lab: Lab) -> None:
    mynet = network(lab, "mynet")
    service(lab, "web", "--network", "mynet", "--publish", "8080:80", replicas=3)
    service(lab, "test", "--network", "mynet", command=SLEEP)
    (test,) = askers(lab, "test")
    webs = {web.name.rpartition(".")[0] for web in askers(lab, "web", 3)}
    vip = next(vip for vip in vips(lab, "web", mynet) if "." in vip)
    before = {node.name: metrics(node) for node in lab.nodes}
    reader = Reader(lab.nodes[0])
    try:
        # the first one is told once the reader is heard of everywhere
        def every_node_tells() -> None:
            for node in lab.nodes:
                curl(lab.client, str(node.spec.v4.ip), 8080)
            assert {flow["node"] for flow in reader.of("balanced", "web")} == {node.name for node in lab.nodes}

        eventually(every_node_tells)
        test.curl(vip, 3)

        def tasks_are_told() -> None:
            told = reader.of("balanced", "web") + reader.of("direct", "web")
            own = [flow for flow in told if flow["source"].get("service") == "test"]
            assert [flow["node"] for flow in own] == [test.node.name] * 3
            assert {(flow.get("backend") or flow["target"])["name"] for flow in own} == webs

        eventually(tasks_are_told)
    finally:
        reader.close()
    mesh = [flow for flow in reader.of("balanced", "web") if flow["place"] == "ingress"]
    assert {flow["backend"]["name"] for flow in mesh} == webs
    assert {flow["source"]["address"] for flow in mesh} == {str(lab.client.spec.v4.ip)}
    assert not [entry for entry in reader.found if entry["type"] != "flow"]
    for node in lab.nodes:
        grown = metrics(node) - before[node.name]
        assert grown["hivemesh_connections_total web"] >= 1
        assert grown["hivemesh_bytes_total web"] > 0
        assert grown["hivemesh_vip_connections_total web led"] == (3 if node is test.node else 0)
    assert metrics(lab.nodes[0])["hivemesh_sessions"] == len(lab.nodes)

    picture = json.loads(lab.nodes[0].exec("hivemesh", "top", "--once", "--json").stdout)
    assert (picture["nodes"], picture["unheard"]) == ([node.name for node in lab.nodes], {})
    assert {row["backend"] for row in picture["rows"] if row["door"] == "8080/tcp"} == {"", *webs}
    done = lab.nodes[1].exec("hivemesh", "flows", "--node", lab.nodes[0].name, check=False)
    assert (done.returncode, "ask a manager about node n1" in done.stderr) == (1, True)
