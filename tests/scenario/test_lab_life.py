"""Labs come up, are used through the command line, and leave nothing behind, whatever happened to them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hivemesh.lab.lab import Lab, LabSettings, labs, machine_marks, namespaces
from hivemesh.lab.machine import LabError
from labs import a_lab

pytestmark = pytest.mark.scenario

FreshLab = Callable[[LabSettings], Lab]
ALONE = LabSettings(nodes=1, engine="process", swarm=False)


@pytest.fixture(scope="module")
def settled() -> Iterator[Lab]:
    """Two nodes on the process engine, for tests that leave them as they are."""
    with a_lab(LabSettings(nodes=2, engine="process", swarm=False)) as lab:
        yield lab


def hivemesh(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = Path(sys.executable).parent / "hivemesh"
    return subprocess.run([command, *arguments], capture_output=True, text=True, check=False, timeout=60)


def traces(lab: Lab) -> list[str]:
    """Whatever of a lab this machine still has."""
    found = [f"process {mark}" for mark in machine_marks(lab.name)]
    found += [f"namespace {name}" for name in namespaces() if name.startswith(f"hm-{lab.name}-")]
    found += [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if f"/{lab.name}/" in line]
    found += [str(path) for path in (lab.places.disk / lab.name, lab.places.run / lab.name) if path.exists()]
    return found


def container_groups(container: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob("**/libpod*") if path.name.endswith(container)]


def test_lab_that_was_removed_leaves_nothing_and_down_can_be_repeated(fresh_lab: FreshLab) -> None:
    lab = fresh_lab(ALONE)
    assert traces(lab)
    assert lab.down()
    assert not traces(lab)
    assert lab.name not in labs()
    assert not lab.down()


def test_lab_that_lost_machines_and_records_is_removed_with_its_containers(fresh_lab: FreshLab) -> None:
    lab = fresh_lab(LabSettings(nodes=2, swarm=False))
    first, second = lab.nodes
    container = first.exec("podman", "run", "--detach", "--network", "none", "localhost/whoami").stdout.strip()
    assert container_groups(container)
    dead = second.init_pid()
    assert dead
    os.kill(dead, signal.SIGKILL)
    (lab.places.disk / lab.name / "lab.json").write_text('{"nodes": ')

    assert Lab(lab.name).down()
    assert not traces(lab)
    assert not container_groups(container)


def test_two_labs_at_once_have_the_same_addresses_and_do_not_meet(fresh_lab: FreshLab) -> None:
    one, other = fresh_lab(ALONE), fresh_lab(ALONE)
    assert one.nodes[0].spec.v4 == other.nodes[0].spec.v4
    (one.nodes[0].disk / "mine").touch()
    assert not (other.nodes[0].disk / "mine").exists()
    one.nodes[0].exec("ip", "netns", "add", "sandbox")
    assert "sandbox" not in other.nodes[0].exec("ip", "netns").stdout + " ".join(namespaces())
    one.down()
    assert other.nodes[0].api("GET", "/_ping") == "OK"


def test_daemon_that_does_not_start_is_quoted_and_nothing_is_left(fresh_lab: FreshLab) -> None:
    known = labs()
    with pytest.raises(LabError, match=r"n1: the daemon did not come up: .*nonsense") as caught:
        fresh_lab(LabSettings(nodes=1, engine="process", swarm=False, log_level="nonsense"))
    kept = re.search(r"logs are kept in (\S+)\)", str(caught.value))
    assert kept
    assert (Path(kept[1]) / "n1.log").exists()
    shutil.rmtree(kept[1])
    assert not [name for name in labs() if name.startswith(f"t{os.getpid()}-") and name not in known]


def test_machines_reach_each_other_by_name_in_both_families(settled: Lab) -> None:
    for family in ("-4", "-6"):
        settled.client.exec("ping", family, "-c1", "-W1", "n2")
        settled.nodes[0].exec("ping", family, "-c1", "-W1", "client")
    assert settled.nodes[1].exec("hostname").stdout == "n2\n"


def test_command_line_lists_and_enters_machines(settled: Lab) -> None:
    name = ("--name", settled.name)
    rows = [row for row in json.loads(hivemesh("lab", "ls", "--json").stdout) if row["lab"] == settled.name]
    assert [(row["machine"], row["ipv4"], row["daemon"]) for row in rows] == [
        ("n1", "198.51.100.11", "running"),
        ("n2", "198.51.100.12", "running"),
        ("client", "198.51.100.100", "-"),
    ]
    assert hivemesh("lab", "exec", *name, "n2", "--", "sh", "-c", "hostname; exit 7").stdout == "n2\n"
    assert hivemesh("lab", "exec", *name, "n1", "--", "sh", "-c", "exit 7").returncode == 7
    assert hivemesh("lab", "client", *name, "--", "hostname").stdout == "client\n"
    assert hivemesh("lab", "env", *name, "n1").stdout == f"export DOCKER_HOST={settled.nodes[0].docker_host}\n"


def test_killed_daemon_is_seen_and_restarted(settled: Lab) -> None:
    before = settled.nodes[0].daemon()
    assert hivemesh("lab", "kill", "--name", settled.name, "n1").returncode == 0
    assert settled.nodes[0].daemon() is None
    assert hivemesh("lab", "restart", "--name", settled.name, "n1").returncode == 0
    after = settled.nodes[0].daemon()
    assert before
    assert after
    assert before.pid != after.pid


def test_wrong_command_says_what_to_do_and_changes_nothing(settled: Lab) -> None:
    again = hivemesh("lab", "up", "--name", settled.name)
    assert (again.returncode, again.stderr) == (
        1,
        f"Error: lab {settled.name} is up; `hivemesh lab down --name {settled.name}` first\n",
    )
    unknown = hivemesh("lab", "exec", "--name", settled.name, "n9", "--", "true")
    assert unknown.returncode == 1
    assert "has no node n9; it has n1, n2" in unknown.stderr
    assert hivemesh("lab", "up", "--nodes", "51", "--name", "toobig").returncode == 1
    assert hivemesh("lab", "up", "--engine", "docker").returncode == 2
    assert settled.nodes[0].api("GET", "/_ping") == "OK"


def test_cut_lost_and_late_frames_are_felt_until_they_are_mended(settled: Lab) -> None:
    def heard(*options: str, count: int = 3) -> int:
        done = settled.client.exec(
            "ping", "-c", str(count), "-i", "0.02", "-W", "0.3", "-q", *options, "n2", check=False
        )
        found = re.search(r"(\d+) received", done.stdout)
        assert found, done
        return int(found[1])

    option = ("--name", settled.name)
    assert heard() == 3
    cut = hivemesh("lab", "cut", "n2", *option).stdout.strip()
    assert heard() == 0
    assert hivemesh("lab", "mend", cut, *option).returncode == 0
    assert heard() == 3
    hivemesh("lab", "cut", "n2", "--port", "2377", *option)
    assert heard() == 3
    hivemesh("lab", "loss", "n2", "--percent", "50", *option)
    assert 0 < heard(count=30) < 30
    hivemesh("lab", "mend", *option)
    hivemesh("lab", "delay", "n2", "--ms", "60", *option)
    slow = settled.client.exec("ping", "-c", "2", "-i", "0.2", "-q", "n2").stdout
    assert float(slow.rpartition(" = ")[2].split("/")[0]) > 100
    assert "is delayed already" in hivemesh("lab", "delay", "n2", *option).stderr
    hivemesh("lab", "mend", *option)
    assert heard() == 3
    assert "has no node n9" in hivemesh("lab", "cut", "n9", *option).stderr
