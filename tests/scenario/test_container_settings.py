"""Settings of containers, from the docker CLI to the inside of a container in a swarm."""

import pytest
from outside import HIVEMESH, cli, eventually

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario

LOOK = """cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax; ulimit -n; ulimit -Hn; cat /proc/1/comm
cat /proc/mounts /proc/self/status /etc/hosts; exec sleep 1000"""


def test_what_was_asked_of_a_container_is_so_inside(lab: Lab) -> None:
    manager = lab.nodes[0]
    options = """--name=set --read-only --init --cap-drop=ALL --cap-add=NET_ADMIN --sysctl=net.core.somaxconn=777
        --sysctl=kernel.msgmax=9999 --ulimit=nofile=100:200 --host=db:192.0.2.7 --limit-memory=64m --limit-pids=50
        --mount=type=volume,target=/v --mount=type=tmpfs,target=/t,tmpfs-size=64k --log-driver=json-file
        --log-opt=max-size=1m"""
    cli(manager, "docker", "service", "create", *options.split(), "localhost/whoami", "sh", "-c", LOOK)
    said = eventually(lambda: _whole(cli(manager, HIVEMESH, "service", "logs", "--raw", "set")))
    somaxconn, msgmax, soft, hard, init, *_ = said.splitlines()
    assert (somaxconn, msgmax, soft, hard) == ("777", "9999", "100", "200")
    assert "init" in init or "tini" in init
    assert "CapEff:\t0000000000001000" in said
    assert "192.0.2.7\tdb" in said.replace(" ", "\t")
    mounts = {line.split()[1]: line.split()[3] for line in said.splitlines() if line.endswith(" 0 0")}
    assert mounts["/"].startswith("ro")
    assert "size=64k" in mounts["/t"]
    assert "/v" in mounts


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--mount=type=bind,source=/no/such/directory,target=/x", "/no/such/directory"),
        ("--sysctl=net.core.somaxconn=many", "somaxconn"),
        ("--sysctl=net.core.no_such_thing=1", "no_such_thing"),
    ],
)
def test_what_a_node_cannot_give_is_told_by_the_task(lab: Lab, option: str, words: str) -> None:
    manager = lab.nodes[0]
    create = ("docker", "service", "create", "--name=never", "--restart-condition=none", "--detach")
    cli(manager, *create, option, "localhost/whoami")

    def refused() -> None:
        said = cli(manager, "docker", "service", "ps", "--no-trunc", "--format={{.CurrentState}} {{.Error}}", "never")
        assert "Rejected" in said or "Failed" in said
        assert words in said

    eventually(refused, timeout=20)


def _whole(text: str) -> str:
    assert "localhost" in text.partition("Cpus_allowed")[2]  # /etc/hosts is there to its end
    return text
