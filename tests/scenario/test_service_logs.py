"""`docker service logs`: what tasks on several nodes wrote, gathered by the manager."""

import re
import subprocess

import pytest
from outside import cli

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario

TALK = "echo to out; echo to err >&2; sleep 0.2; echo later; exec sleep 1000"


def test_logs_of_all_tasks_are_read_and_followed_with_their_names(lab: Lab) -> None:
    manager = lab.nodes[0]
    cli(
        manager,
        "docker",
        "service",
        "create",
        "--name",
        "talk",
        "--replicas",
        "3",
        "localhost/whoami",
        "sh",
        "-c",
        TALK,
    )
    found = cli(manager, "docker", "service", "logs", "--timestamps", "talk")
    lines = [line for line in found.splitlines() if "later" in line]
    assert {re.search(r"talk\.(\d)\.\w+@(n\d)", line)[1] for line in lines} == {"1", "2", "3"}  # type: ignore[index]
    assert {re.search(r"@(n\d)", line)[1] for line in lines} == {"n1", "n2", "n3"}  # type: ignore[index]
    assert all(line.startswith("20") for line in lines)
    assert cli(manager, "docker", "service", "logs", "--raw", "--tail", "1", "talk").split() == ["later"] * 3
    follow = ("service", "logs", "--raw", "--follow", "--tail", "0", "talk")
    with subprocess.Popen(["docker", "--host", manager.docker_host, *follow], stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        cli(manager, "docker", "service", "scale", "--detach", "talk=4")
        assert following.stdout.readline() == b"to out\n"
        following.kill()
