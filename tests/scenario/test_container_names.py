"""What a container is told of names, and that it has one only while it is healthy. Podman and dig are the witnesses."""

import pytest
from outside import TaskSeen, await_tasks, cli, eventually, inside, tasks_of

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario


def in_container(node: Node, container: str, *command: str) -> str:
    return node.exec("podman", "exec", container, *command).stdout


def dig(node: Node, task: TaskSeen, name: str) -> set[str]:
    said = inside(node, task.id[:12], "dig", "+short", "+time=1", "+tries=1", "@127.0.0.11", name, check=False)
    return {line for line in said.splitlines() if not line.startswith(";")}


def test_container_finds_files_that_lead_to_the_resolver(lab: Lab) -> None:
    first = lab.nodes[0]
    cli(first, "docker", "network", "create", "--driver", "overlay", "mynet")
    cli(first, "docker", "service", "create", "--detach", "--name", "web", "--network", "mynet", "--hostname",
        "box-{{.Task.Slot}}", "--host", "legacy:192.0.2.1", "--dns-search", "inside.example", "--dns-option", "ndots:1",
        "--publish", "8087:80", "localhost/whoami")  # fmt: skip
    (task,) = await_tasks(lab, "web", 1)
    node = lab.node(task.node)
    on_mynet, on_ingress = (next(a for a in task.addresses if a.startswith(net)) for net in ("10.0.1.", "10.0.0."))
    hosts = in_container(node, task.host, "cat", "/etc/hosts")
    assert f"{on_mynet}\tbox-1\n" in hosts
    assert "192.0.2.1\tlegacy\n" in hosts
    assert on_ingress not in hosts
    lines = in_container(node, task.host, "cat", "/etc/resolv.conf").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "nameserver 127.0.0.11", "search inside.example", "options ndots:1",
    ]  # fmt: skip
    assert "Hostname: box-1" in in_container(node, task.host, "wget", "-qO-", "http://web/")
    assert in_container(node, task.host, "hostname").strip() == "box-1"


def test_container_has_a_name_only_while_it_is_healthy(lab: Lab) -> None:
    first = lab.nodes[0]
    cli(first, "docker", "network", "create", "--driver", "overlay", "mynet")
    cli(first, "docker", "service", "create", "--detach", "--name", "asker", "--network", "mynet",
        "localhost/whoami", "sleep", "infinity")  # fmt: skip
    (asker,) = await_tasks(lab, "asker", 1)
    (own,) = asker.addresses
    assert f"{own}\t{asker.host}\n" in in_container(lab.node(asker.node), asker.host, "cat", "/etc/hosts")
    cli(first, "docker", "service", "create", "--detach", "--name", "web", "--network", "mynet", "--restart-condition",
        "none", "--health-cmd", "test -e /tmp/healthy", "--health-interval", "200ms", "--health-retries", "2",
        "--health-start-period", "1m", "--health-start-interval", "200ms", "localhost/whoami")  # fmt: skip

    def starting() -> TaskSeen:
        (task,) = tasks_of(lab, "web")
        assert (task.state, bool(task.host)) == ("starting", True)
        return task

    task = eventually(starting, 30)
    node, where = lab.node(task.node), lab.node(asker.node)
    assert dig(where, asker, "tasks.web") == dig(where, asker, "web") == set()
    in_container(node, task.host, "touch", "/tmp/healthy")
    await_tasks(lab, "web", 1)

    def named() -> None:
        assert dig(where, asker, "tasks.web") == task.addresses

    eventually(named)
    in_container(node, task.host, "rm", "/tmp/healthy")

    def ended() -> None:
        (found,) = tasks_of(lab, "web")
        assert found.state == "failed"
        assert "unhealthy container" in cli(first, "docker", "service", "ps", "--no-trunc", "web")
        assert dig(where, asker, "tasks.web") == dig(where, asker, "web") == set()

    eventually(ended, 30)
