"""The disks under two of three managers' stores are full: writes are refused in words that say so, tasks go on, and
with room all works again.
"""

import shutil
import time
from collections.abc import Iterator

import pytest
from outside import Trickle, eventually, start_service

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import LabError
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = [pytest.mark.scenario, pytest.mark.soak]

SIZE = 256
"""MiB of the small disks: etcd reserves two times 64 for its journal before it begins."""
LEFT = 1
"""MiB that are left when they are nearly full."""
DATA = "aGl2" * 80_000
"""Of one config, 240 kB."""


@pytest.fixture
def small() -> Iterator[Lab]:
    """Three managers, of whom n2 and n3 have their store on a small disk."""
    with a_lab(LabSettings(nodes=3, managers=3, engine="process")) as lab:
        for node in lab.nodes[1:]:
            node.stop_daemon()
            node.kill_part("etcd")
            store = node.disk / "data" / "store"
            kept = node.disk / "kept"
            shutil.copytree(store, kept)
            node.exec("mount", "-t", "tmpfs", "-o", f"size={SIZE}m,mode=700", "tmpfs", str(store))
            node.exec("cp", "-a", f"{kept}/.", str(store))
            lab.restart_daemon(node.name)
            eventually(lambda: _assert_well(lab), 30)
        yield lab


def _assert_well(lab: Lab) -> None:
    try:
        for node in lab.nodes:
            states = [each["ManagerStatus"]["Reachability"] for each in node.api("GET", "/nodes")]
            assert states == ["reachable"] * 3
    except (LabError, Refused) as error:
        raise AssertionError(str(error)) from error


def _fill(node: Node) -> None:
    store = node.disk / "data" / "store"
    free = f"$(($(stat -f -c '%a * %S' {store}) / 1048576 - {LEFT}))"
    node.exec("sh", "-c", f"dd if=/dev/zero of={store}/filler bs=1M count={free}")


def _write(node: Node, name: str) -> None:
    node.api("POST", "/configs/create", {"Name": name, "Data": DATA}, timeout=30)


def test_full_disks_are_named_in_what_is_refused_and_with_room_it_goes_on(small: Lab) -> None:
    start_service(small, replicas=3)
    first, second, _ = small.nodes
    promised, refusal = [], ""
    with Trickle(small.client, [str(node.spec.v4.ip) for node in small.nodes]) as trickle:
        for node in small.nodes[1:]:
            _fill(node)
        for number in range(200):
            try:
                _write(first, f"c{number}")
            except Refused as error:
                refusal = str(error)
                break
            promised.append(f"c{number}")
        assert "does not have a leader" in refusal or "is full" in refusal, refusal

        def said() -> None:
            with pytest.raises(
                Refused, match=r"the disk under .* is full: make room, and it goes on by itself"
            ) as told:
                _write(second, f"full{time.monotonic()}")
            assert told.value.status == 503

        eventually(said, 30)
        for node in small.nodes[1:]:
            node.exec("rm", str(node.disk / "data" / "store" / "filler"))
        eventually(lambda: _assert_well(small), 60)
        for node in small.nodes:
            _write(node, f"after-{node.name}")
    assert trickle.failed == []
    for node in small.nodes:
        kept = {config["Spec"]["Name"] for config in node.api("GET", "/configs")}
        assert {*promised, *(f"after-{each.name}" for each in small.nodes)} - kept == set(), node.name
