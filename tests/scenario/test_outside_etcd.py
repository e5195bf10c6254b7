"""A swarm whose state is in somebody else's etcd, over TLS: two managers, restarts, and ten seconds without it.

Commands of the host serve here, not containers: nothing in these tests depends on what runs a task.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from outside import SERVICE, Trickle, await_tasks, cli, eventually, run_cli, start_service

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import LabError, kill
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = pytest.mark.scenario

PORT, PEER_PORT, DEAD_PORT = 2379, 2380, 2381
CERTIFICATES = """
set -e
cd "$1"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=theirs -keyout ca.key -out ca.pem
for name in server client; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
    printf 'subjectAltName=IP:%s\\nextendedKeyUsage=serverAuth,clientAuth\\n' "$2" >$name.ext
    openssl x509 -req -days 2 -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile $name.ext -out $name.pem
done
"""


@dataclass(frozen=True)
class Theirs:
    """An etcd on the lab's client host, which asks for certificates of its own CA."""

    lab: Lab
    folder: Path

    @property
    def store(self) -> str:
        """One of the two endpoints is nobody."""
        host, files = (
            self.lab.client.spec.v4.ip,
            "&".join(
                f"{name}={self.folder / file}"
                for name, file in (("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key"))
            ),
        )
        return f"etcds://{host}:{DEAD_PORT},{host}:{PORT}/team-a?{files}"

    def start(self) -> None:
        host, file = self.lab.client.spec.v4.ip, self.folder
        client, peer = f"https://{host}:{PORT}", f"http://127.0.0.1:{PEER_PORT}"
        self.lab.client.spawn(
            ["etcd", "--name=theirs", f"--data-dir={file}/data", "--logger=zap", "--log-level=warn",
             f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
             f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=theirs={peer}", "--client-cert-auth",
             f"--cert-file={file}/server.pem", f"--key-file={file}/server.key", f"--trusted-ca-file={file}/ca.pem",
             "--max-txn-ops=100000", "--max-request-bytes=33554432"],
            file / "log",
        )  # fmt: skip

    def restart(self, node: Node) -> None:
        self.lab.restart_daemon(node.name, options=["--store", self.store])

    def end(self) -> None:
        kill([process for process in self.lab.client.processes() if process.runs("etcd")], signal.SIGKILL)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theirs]:
    """Machines whose daemons are told of it."""
    with a_lab(LabSettings(nodes=2, engine="process", swarm=False)) as lab:
        folder = tmp_path_factory.mktemp("etcd")
        subprocess.run(
            ["bash", "-c", CERTIFICATES, "sh", str(folder), str(lab.client.spec.v4.ip)], check=True, capture_output=True
        )
        etcd = Theirs(lab, folder)
        etcd.start()
        for node in lab.nodes:
            etcd.restart(node)
        yield etcd


@pytest.fixture
def swarm(theirs: Theirs) -> Lab:
    """n1 and n2 manage, no service is there. Leave it so."""
    lab = theirs.lab
    first = lab.nodes[0]
    if first.api("GET", "/info")["Swarm"]["LocalNodeState"] == "inactive":
        cli(first, "docker", "swarm", "init", "--advertise-addr", str(first.spec.v4.ip))
        second, token = lab.nodes[1], cli(first, "docker", "swarm", "join-token", "--quiet", "manager").strip()
        cli(second, "docker", "swarm", "join", "--advertise-addr", str(second.spec.v4.ip), "--token", token, "n1:2377")
    lab.await_ready()
    lab.reset()
    return lab


def _managers(lab: Lab) -> set[str]:
    """Both managers answer and agree on who leads: who manages."""
    seen = []
    for node in lab.nodes:
        try:
            nodes = node.api("GET", "/nodes")
        except (LabError, Refused) as error:  # its daemon starts
            raise AssertionError(str(error)) from error
        assert [each for each in nodes if each["Status"]["State"] != "ready"] == []
        status = {each["Description"]["Hostname"]: each.get("ManagerStatus", {}) for each in nodes}
        assert [name for name in status if status[name].get("Reachability", "reachable") != "reachable"] == []
        assert sum(status[name].get("Leader", False) for name in status) == 1
        seen.append({name for name in status if status[name]})
    assert seen[0] == seen[1]
    return seen[0]


@pytest.mark.soak
def test_two_managers_on_an_etcd_of_somebody_else_outlive_their_daemons(swarm: Lab, theirs: Theirs) -> None:
    first, second = swarm.nodes
    assert eventually(lambda: _managers(swarm), 10) == {"n1", "n2"}
    assert [process for node in swarm.nodes for process in node.processes() if process.runs("etcd")] == []
    running = start_service(swarm, replicas=2)
    cli(second, "docker", "network", "create", "--driver", "overlay", "back")
    with Trickle(swarm.client, [str(node.spec.v4.ip) for node in swarm.nodes]) as trickle:
        for node in (first, second):
            theirs.restart(node)
    assert trickle.failed == []
    eventually(lambda: _managers(swarm), 15)
    assert "back" in cli(first, "docker", "network", "ls", "--format", "{{.Name}}").split()
    cli(second, "hivemesh", "service", "scale", "--detach", f"{SERVICE}=3")
    assert {task.id for task in running} < {task.id for task in await_tasks(swarm, SERVICE, 3)}


def _assert_waits(node: Node) -> None:
    assert "does not have a leader" in node.api("GET", "/info")["Swarm"]["Error"]


@pytest.mark.parametrize("away", [0.0, pytest.param(10.0, marks=pytest.mark.soak)])
def test_without_their_etcd_packets_flow_writes_are_refused_and_it_goes_on_afterwards(
    swarm: Lab, theirs: Theirs, away: float
) -> None:
    """`away` is seconds at least; what is asked meanwhile takes some by itself."""
    assert "two-manager configuration" in run_cli(swarm.nodes[0], "docker", "info").err
    running = start_service(swarm, replicas=2)
    with Trickle(swarm.client, [str(node.spec.v4.ip) for node in swarm.nodes]) as trickle:
        theirs.end()
        until = time.monotonic() + away
        try:
            for node in swarm.nodes:
                refused = run_cli(node, "hivemesh", "network", "create", "--driver", "overlay", "stuck")
                assert refused.code != 0
                assert "does not have a leader" in refused.err
                assert "etcd" in refused.err
            assert len(cli(swarm.nodes[0], "docker", "service", "ps", "-q", SERVICE).split()) == 2, "reads work"
            theirs.restart(swarm.nodes[1])
            eventually(lambda: _assert_waits(swarm.nodes[1]), 10)
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            theirs.start()
        eventually(lambda: _managers(swarm), 15)
    assert trickle.failed == []
    assert len(trickle.tries) > 200
    cli(swarm.nodes[1], "hivemesh", "service", "scale", "--detach", f"{SERVICE}=3")
    assert {task.id for task in running} < {task.id for task in await_tasks(swarm, SERVICE, 3)}
    assert "stuck" not in cli(swarm.nodes[0], "docker", "network", "ls", "--format", "{{.Name}}").split()
