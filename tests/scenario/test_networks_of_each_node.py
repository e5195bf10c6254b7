"""Networks of the swarm that each node makes from settings of its own: `--scope swarm --config-from`."""

import json
from typing import Any

import pytest
from outside import IMAGE, await_tasks, cli, eventually, run_cli

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario


def containers(node: Node, network: str) -> list[dict[str, Any]]:
    shown = json.loads(cli(node, "docker", "network", "inspect", "--format", "{{json .Containers}}", network))
    return list(shown.values())


def test_service_has_addresses_of_each_nodes_own_network(lab: Lab) -> None:
    first, second, third = lab.nodes
    for number, node in enumerate((first, second), 1):
        cli(node, "docker", "network", "create", "--config-only", "--subnet", f"10.44.{number}.0/24", "settings")
    try:
        _on_each_node(lab, first, second, third)
    finally:
        for node in (first, second):
            eventually(lambda node=node: cli(node, "docker", "network", "rm", "settings"), 30)  # type: ignore[misc]


def _on_each_node(lab: Lab, first: Node, second: Node, third: Node) -> None:
    create = "docker network create --driver bridge --scope swarm --config-from settings --attachable"
    cli(first, *create.split(), "near")
    assert "near\tbridge\tswarm" in cli(
        third, "docker", "network", "ls", "--format", "{{.Name}}\t{{.Driver}}\t{{.Scope}}"
    )
    service = "docker service create --detach --mode global --network near --publish 8093:80 --stop-grace-period 1s"
    cli(first, *service.split(), "--constraint", "node.hostname!=n3", "--name", "web", IMAGE)
    await_tasks(lab, "web", 2)
    for number, node in enumerate((first, second), 1):
        (only,) = containers(node, "near")
        assert only["IPv4Address"] == f"10.44.{number}.2/24"
    reached = lab.client.exec("curl", "-s", "-m", "5", f"http://{third.spec.v4.ip}:8093/").stdout
    assert "IP: 10.44." in reached

    # A container of the node, by name; and both are the same after the daemon was killed
    cli(second, "docker", "run", "--detach", "--name", "box", "--network", "near", IMAGE)
    shown = cli(second, "docker", "inspect", "--format", "{{.NetworkSettings.Networks.near.IPAddress}}", "box")
    assert shown.strip() == "10.44.2.3"
    before = containers(second, "near")
    assert "10.44.2.2" in cli(second, "docker", "exec", "box", "wget", "-qO-", "http://web/")
    lab.restart_daemon(second.name, kill=True)
    eventually(lambda: _assert_same(second, before), 15)
    assert "10.44.2.2" in cli(second, "docker", "exec", "box", "wget", "-qO-", "http://web/")

    # A node without the settings says so
    cli(first, "docker", "service", "update", "--detach", "--constraint-rm", "node.hostname!=n3", "web")
    eventually(lambda: _assert_refused(lab, third), 15)
    assert "in use by network near" in run_cli(second, "docker", "network", "rm", "settings").err
    cli(first, "docker", "service", "rm", "web")
    cli(second, "docker", "rm", "--force", "box")
    eventually(lambda: cli(first, "docker", "network", "rm", "near"), 20)


def _assert_same(node: Node, before: list[dict[str, Any]]) -> None:
    assert sorted(map(str, containers(node, "near"))) == sorted(map(str, before))


def _assert_refused(lab: Lab, node: Node) -> None:
    said = cli(lab.nodes[0], "docker", "service", "ps", "--no-trunc", "--format", "{{.Node}} {{.Error}}", "web")
    assert f'{node.name} "configuration network settings not found"' in said
