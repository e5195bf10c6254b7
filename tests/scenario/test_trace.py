"""`hivemesh trace` in a lab: from a task, a node and from outside, across nodes; what nobody repairs, who is dead."""

import json
import re
from typing import Any

import pytest
from names_asked import SLEEP, Asker, askers, network, service

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario


def traced(node: Node, *ends: str) -> tuple[int, Any]:
    done = node.exec("hivemesh", "trace", "--json", *ends, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def hops(trace: Any) -> list[Any]:
    return [*trace["begin"], *(hop for way in trace["ways"] for hop in way["hops"]), *trace["end"]]


def places(trace: Any) -> set[str]:
    return {hop["node"] for hop in hops(trace)}


def test_traces_see_all_nodes_on_the_way_and_name_a_route_that_refuses(lab: Lab) -> None:
    network(lab, "mynet")
    service(lab, "web", "--network", "mynet", "--publish", "8080:80", replicas=3)
    service(lab, "test", "--network", "mynet", command=SLEEP)
    (test,) = askers(lab, "test")
    webs: list[Asker] = askers(lab, "web", 3)
    first = lab.nodes[0]
    away = next(node for node in lab.nodes if node.name != first.name)
    for node, *ends in (
        (test.node, test.name, "web:80"), (test.node, ":8080"), (first, test.name, "web:80"),
        (first, "192.0.2.200", f"{away.name}:8080"), (first, f"{away.spec.v4.ip}:8080"),
        (first, first.name, f"{away.name}:8080"), (first, test.name, "web:80", "--count", "6"),
        (first, webs[0].name, "web:80"),  # one of its ways leads back to itself
    ):  # fmt: skip
        code, trace = traced(node, *ends)
        assert (code, places(trace)) == (0, {web.node.name for web in webs})
        assert all(not way["unseen"] and way["said"].startswith("answered") for way in trace["ways"])
        assert all(hop["probe"]["agrees"] for hop in hops(trace) if hop["passage"])
        assert trace["answered"] == trace["sent"] == (6 if "--count" in ends else 3)
        assert sum(way["met"] for way in trace["ways"]) == trace["sent"]
    assert traced(first, test.name, "web:81")[0] == 1
    assert not any(hop["probe"] for hop in hops(traced(first, ":8080", "--no-probe")[1]))

    other = next(web.node for web in webs if web.node.name != test.node.name).spec.v4.ip
    route = ("ip", "route", "{}", "blackhole", f"{other}/32")
    test.node.exec(*(word.format("add") for word in route))
    try:
        done = test.node.exec("hivemesh", "trace", test.name, "web:80", check=False)
    finally:
        test.node.exec(*(word.format("del") for word in route))
    assert done.returncode == 1
    assert f"finding: the kernel's way to {other} at {test.node.name}/host" in done.stdout
    assert f"proof: ip route get {other}   (on {test.node.name})" in done.stdout


def test_port_in_host_mode_is_traced_as_another_node_asks_it(lab: Lab) -> None:
    service(lab, "web", "--publish", "mode=host,published=8090,target=80", replicas=len(lab.nodes))
    askers(lab, "web", len(lab.nodes))
    first, second, *_ = lab.nodes
    code, trace = traced(first, second.name, f"{first.name}:8090")
    assert (code, trace["source"], trace["answered"]) == (0, second.name, 1)
    assert [hop["node"] for hop in trace["begin"]] == [second.name, first.name, first.name]
    assert all(hop["probe"]["kernel"] == "seen" for hop in hops(trace))
    refused = first.exec("hivemesh", "trace", second.name, "web", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "published ports only, NODE:PORT" in refused.stderr


@pytest.mark.soak  # two daemons die and come back
def test_node_whose_daemon_died_is_a_finding_and_without_managers_probes_still_tell(lab: Lab) -> None:
    service(lab, "web", "--publish", "8080:80", replicas=3)
    webs = askers(lab, "web", 3)
    first, second, third = (web.node for web in sorted(webs, key=lambda web: web.node.name))
    third.kill_daemon()
    try:
        done = first.exec("hivemesh", "trace", ":8080", check=False)
        assert done.returncode == 1
        assert re.search(
            rf"finding: node {third.name} at {third.name}/host: (has not been|does not answer)", done.stdout
        )
        assert "3 probes to" in done.stdout
        assert ": 3 answered" in done.stdout  # what the dead daemon left in its kernel goes on working
        first.kill_daemon()
        code, trace = traced(second, ":8080")
        assert (code, trace["answered"]) == (3, 3)
        assert len([way for way in trace["ways"] if "cannot reach the manager" in way["unseen"]]) > 0
        assert all(way["said"].startswith("answered") for way in trace["ways"])
    finally:
        for node in (first, third):
            lab.restart_daemon(node.name)
