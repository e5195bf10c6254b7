"""Secrets and configs in a swarm: where they are, and above all where they are not."""

import pytest
from outside import cli, eventually

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

pytestmark = pytest.mark.scenario

WORD = "kq7-violet-harbour-93"
PLACES = ("/run/hivemesh", "/run/containers", "/dev/shm", "/var/lib/hivemesh")
"""Where a node of a lab writes, beside its own disk."""


def holders(node: Node, text: str) -> list[str]:
    """Files with `text` on the node's disk and in its file systems in memory, sockets and devices aside."""
    places = [
        place for place in (*PLACES, str(node.disk)) if node.exec("test", "-e", place, check=False).returncode == 0
    ]
    done = node.exec(
        "grep", "--recursive", "--devices=skip", "--binary", "--files-with-matches", text, *places, check=False
    )
    return done.stdout.split()


def in_container(node: Node, *command: str) -> str:
    (container,) = cli(node, "docker", "ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=vault").split()
    return cli(node, "docker", "exec", container, *command)


def test_task_reads_its_secret_and_no_other_node_and_no_disk_has_it(lab: Lab) -> None:
    manager, other, runner = lab.nodes
    manager.exec("docker", "secret", "create", "word", "-", input=WORD)
    form = 'of {{.Service.Name}}: {{secret "deep/word"}} {{env "SIDE"}}'
    manager.exec("docker", "config", "create", "--template-driver", "golang", "site", "-", input=form)
    cli(
        manager, "docker", "service", "create", "--quiet", "--no-resolve-image", "--name", "vault",
        "--env", "SIDE=left",
        "--constraint", f"node.hostname=={runner.name}", "--config", "source=site,target=/etc/site.conf",
        "--secret", "source=word,target=deep/word,uid=7,gid=8,mode=0400", "localhost/whoami",
    )  # fmt: skip
    assert in_container(runner, "stat", "-c", "%a %u %g", "/run/secrets/deep/word") == "400 7 8\n"
    assert in_container(runner, "cat", "/run/secrets/deep/word") == WORD
    assert in_container(runner, "cat", "/etc/site.conf") == f"of vault: {WORD} left"
    assert WORD not in cli(manager, "docker", "secret", "inspect", "word")
    assert holders(manager, WORD) == holders(other, WORD) == []
    # On the node of the task: its own two files in memory, and nothing else.
    secrets = "/run/hivemesh/secrets/"
    assert sorted(path.removeprefix(secrets)[25:] for path in holders(runner, WORD)) == ["/0", "/1"]
    assert runner.exec("stat", "-f", "-c", "%T", secrets).stdout == "tmpfs\n"

    assert "is in use by the following service: vault" in manager.exec(
        "docker", "secret", "rm", "word", check=False
    ).stderr  # fmt: skip
    cli(manager, "docker", "service", "rm", "vault")

    def gone() -> None:
        assert runner.exec("ls", secrets).stdout == ""

    eventually(gone, 30)
    assert holders(runner, WORD) == []
