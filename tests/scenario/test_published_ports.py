"""Ports of a running service that change, that are open at chosen places only, and that a node chooses."""

import pytest
from outside import (
    IMAGE,
    SERVICE,
    Trickle,
    await_served,
    await_tasks,
    cli,
    curl,
    eventually,
    run_cli,
    start_service,
    tasks_of,
)

from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import Machine

pytestmark = pytest.mark.scenario


def refused(asker: Machine, host: str, port: int) -> None:
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    done = asker.exec("curl", "--silent", "--globoff", "--max-time", "3", url, check=False)
    assert done.returncode == 7, f"{asker.name}$ curl {url}: {done.returncode} is not 'connection refused'"


def test_port_that_is_added_and_removed_disturbs_no_other(lab: Lab) -> None:
    first, asked = lab.nodes[0], str(lab.nodes[1].spec.v4.ip)
    start_service(lab)
    update = ("hivemesh", "service", "update", "--detach", "--update-order", "start-first")
    with Trickle.to_all(lab) as trickle:
        cli(first, *update, "--publish-add", "8091:80", SERVICE)
        eventually(lambda: curl(lab.client, asked, 8091))
        ours = {task.host for task in eventually(lambda: await_tasks(lab, SERVICE, 2))}
        await_served(lab, 2, 8091)
        cli(first, *update, "--publish-rm", "8091:80", SERVICE)
        eventually(lambda: refused(lab.client, asked, 8091))
        eventually(lambda: _are_replaced(lab, ours))
    assert trickle.failed == []
    assert len(trickle.tries) > 50


def _are_replaced(lab: Lab, before: set[str]) -> None:
    running = [task for task in tasks_of(lab, SERVICE) if task.state == task.desired == "running"]
    assert len(running) == 2
    assert not before & {task.host for task in running}


def test_label_says_at_which_addresses_and_nodes_a_port_is_open(lab: Lab) -> None:
    one, two, three = lab.nodes
    at = f"hivemesh.publish.8095={one.spec.v4.ip},{two.spec.v6.ip}"
    (first,) = start_service(lab, "--label", at, "--publish", "8095:80", name="first", replicas=1, port=0)
    for host in (one.spec.v4.ip, two.spec.v6.ip):
        (answer,) = eventually(lambda host=str(host): curl(lab.client, host, 8095))  # type: ignore[misc]
        assert answer.host == first.host
    for asker, shut in ((lab.client, str(one.spec.v6.ip)), (lab.client, str(two.spec.v4.ip)), (one, "127.0.0.1")):
        refused(asker, shut, 8095)
    create = ("docker", "service", "create", "--detach", "--publish", "8095:80")
    clash = run_cli(one, *create, IMAGE)
    assert "port '8095' is already in use by service 'first'" in clash.err
    bad = run_cli(one, *create, "--label", "hivemesh.publish.8095=n1", IMAGE)
    assert "invalid label hivemesh.publish.8095=n1" in bad.err

    (second,) = start_service(
        lab, "--label", f"hivemesh.publish.8095={three.spec.v4.ip}", "--publish", "8095:80", name="second", replicas=1,
        port=0,
    )  # fmt: skip
    (answer,) = eventually(lambda: curl(lab.client, str(three.spec.v4.ip), 8095))
    assert answer.host == second.host
    assert curl(lab.client, str(one.spec.v4.ip), 8095)[0].host == first.host

    cli(one, "docker", "service", "rm", "second")
    eventually(lambda: refused(lab.client, str(three.spec.v4.ip), 8095))
    try:
        cli(one, "docker", "node", "update", "--label-add", "edge=true", three.name)
        edge = "hivemesh.publish.8095=node.labels.edge==true"
        cli(one, "hivemesh", "service", "update", "--detach", "--label-add", edge, "first")
        for host in (three.spec.v4.ip, three.spec.v6.ip):
            (answer,) = eventually(lambda host=str(host): curl(lab.client, host, 8095))  # type: ignore[misc]
            assert answer.host == first.host, "the task was not replaced"
        eventually(lambda: refused(lab.client, str(one.spec.v4.ip), 8095))
    finally:
        cli(one, "docker", "node", "update", "--label-rm", "edge", three.name)
    eventually(lambda: refused(lab.client, str(three.spec.v4.ip), 8095))


def test_host_ports_a_node_chooses_are_told_and_lead_to_the_task_in_both_families(lab: Lab) -> None:
    (task,) = start_service(
        lab, "--publish", "target=80,mode=host", "--publish", "target=80,protocol=udp,mode=host", replicas=1, port=0
    )
    home = lab.node(task.node)

    def told() -> dict[str, int]:
        ports = lab.nodes[0].api("GET", f"/tasks/{task.id}")["Status"]["PortStatus"]["Ports"]
        return {port["Protocol"]: port["PublishedPort"] for port in ports}

    ports = eventually(told)
    assert set(ports) == {"tcp", "udp"}
    for host in (str(home.spec.v4.ip), str(home.spec.v6.ip)):
        for asker in (lab.client, home):
            assert curl(asker, host, ports["tcp"])[0].host == task.host
    clash = run_cli(lab.nodes[0], "docker", "service", "create", "--detach", "--publish", f"{ports['tcp']}:80", IMAGE)
    assert f"port '{ports['tcp']}' is already in use by service '{SERVICE}'" in clash.err
    assert "as a host-published port" in clash.err
