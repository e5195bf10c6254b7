"""`hivemesh trace` in a lab: from a task and from outside, across nodes, and what nobody repairs."""

import json
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


def places(trace: Any) -> set[str]:
    hops = [*trace["begin"], *(hop for way in trace["ways"] for hop in way["hops"])]
    return {hop["node"] for hop in hops}


def test_traces_see_all_nodes_on_the_way_and_name_a_route_that_refuses(lab: Lab) -> None:
    network(lab, "mynet")
    service(lab, "web", "--network", "mynet", "--publish", "8080:80", replicas=3)
    service(lab, "test", "--network", "mynet", command=SLEEP)
    (test,) = askers(lab, "test")
    webs: list[Asker] = askers(lab, "web", 3)
    for ends in ((test.name, "web:80"), (":8080",)):
        code, trace = traced(test.node, *ends)
        assert (code, places(trace)) == (0, {web.node.name for web in webs})
        assert all(not way["unseen"] for way in trace["ways"])

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
