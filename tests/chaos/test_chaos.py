"""A storm over five nodes with three managers, under constant load: what was promised holds all the time.

A failure names its seed: `HIVEMESH_SEED=… HIVEMESH_MINUTES=… pytest -m soak tests/chaos` makes the same choices again.
"""

import contextlib
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_clients import Client
from looker import ENDED, Looker
from outside import backends, drift, namespaces
from storm import ASKERS, PORT, SERVICE, Storm
from witness import Witness

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import LabError
from labs import a_lab
from pace import Pace

pytestmark = pytest.mark.scenario

SHORT = 14.0
"""Seconds of storm in `make test`."""
SETTLE = 45.0
"""Seconds for everything to come to rest afterwards."""


@pytest.fixture
def five() -> Iterator[Lab]:
    with a_lab(LabSettings(nodes=5, managers=3, engine="process")) as lab:
        yield lab


def test_a_short_storm_breaks_no_promise(five: Lab, tmp_path: Path) -> None:
    rage(five, tmp_path, SHORT)


@pytest.mark.soak
def test_a_long_storm_breaks_no_promise(five: Lab, tmp_path: Path) -> None:
    rage(five, tmp_path, float(os.environ.get("HIVEMESH_MINUTES") or 10) * 60)


def rage(lab: Lab, place: Path, seconds: float) -> None:
    with Pace(place / "pace") as pace:
        _rage(lab, place, seconds, pace)


def _rage(lab: Lab, place: Path, seconds: float, pace: Pace) -> None:
    seed = int(os.environ.get("HIVEMESH_SEED") or random.randrange(10**9))
    witness = Witness(tuple(node.name for node in lab.nodes), pace)
    storm = Storm(lab, seed, witness)
    storm.start()
    come_to_rest(storm)
    clients = clients_of(storm, place)
    asked = []
    try:
        for client in clients:
            client.start()
        with Looker(storm, witness) as looker:
            until = time.monotonic() + seconds
            while time.monotonic() < until and not witness.faults:
                storm.step()
            storm.calm()
            come_to_rest(storm)
    finally:
        print(f"HIVEMESH_SEED={seed}, what daemons said: {place}")
        print("\n".join(storm.log))
        for node in lab.nodes:
            shutil.copy(node.log, place / f"{node.name}.log")
        for client in clients:
            with contextlib.suppress(OSError):
                asked += client.finish()
    counts = witness.judge([*asked, *looker.looks])
    print("\n".join(f"{count:7} {what}" for what, count in sorted(counts.items())))
    print(pace)
    print("\n".join(witness.faults))
    assert witness.faults[:20] == [], f"HIVEMESH_SEED={seed}"
    right = sum(count for what, count in counts.items() if what.endswith(" right"))
    assert right > counts.total() / 2, "little was seen"


def come_to_rest(storm: Storm) -> None:
    since = time.monotonic()
    while True:
        try:
            assert_settled(storm)
            return
        except AssertionError:
            if time.monotonic() > storm.witness.pace.limit(SETTLE, since):
                raise
        time.sleep(0.1)


def clients_of(storm: Storm, place: Path) -> list[Client]:
    """One that connects through each node, and in each node one that asks for names, one for the virtual address."""
    lab = storm.lab
    first = lab.nodes[0]
    nodes = {node["ID"]: node["Description"]["Hostname"] for node in first.api("GET", "/nodes")}
    service, asker = (first.api("GET", f"/services/{name}") for name in (SERVICE, ASKERS))
    mesh = asker["Endpoint"]["VirtualIPs"][0]["NetworkID"]
    vip = next(v["Addr"].partition("/")[0] for v in service["Endpoint"]["VirtualIPs"] if v["NetworkID"] == mesh)
    spaces = {
        nodes[task["NodeID"]]: task["ID"][:12]
        for task in first.api("GET", "/tasks")
        if task["ServiceID"] == asker["ID"] and task["Status"]["State"] == "running"
    }
    made = []
    for node in lab.nodes:
        made.append(Client(lab.client, "mesh", node.name, f"{node.spec.v4.ip}:{PORT}", place / f"{node.name}.mesh"))
        enter = ("ip", "netns", "exec", spaces[node.name])
        made.append(Client(node, "names", node.name, f"tasks.{SERVICE}", place / f"{node.name}.names", enter, 0.05))
        made.append(Client(node, "vip", node.name, f"{vip}:80", place / f"{node.name}.vip", enter, 0.05))
    return made


def assert_settled(storm: Storm) -> None:
    """All is as wanted, at all managers and in all kernels."""
    try:
        for manager in storm.managers:
            nodes = manager.api("GET", "/nodes")
            assert {node["Status"]["State"] for node in nodes} == {"ready"}
            reachable = [n["ManagerStatus"]["Reachability"] for n in nodes if "ManagerStatus" in n]
            assert reachable == ["reachable"] * 3
            configs = {each["Spec"]["Name"] for each in manager.api("GET", "/configs")}
            assert set(storm.acked) - configs == set()
        tasks = storm.managers[0].api("GET", "/tasks")
        alive = [task for task in tasks if task["Status"]["State"] not in ENDED]
        assert {(t["Status"]["State"], t["DesiredState"]) for t in alive} == {("running", "running")}, alive
        ids = {each["Spec"]["Name"]: each["ID"] for each in storm.managers[0].api("GET", "/services")}
        web = [task for task in alive if task["ServiceID"] == ids[SERVICE]]
        assert len(web) == storm.replicas
        addresses = {a.partition("/")[0] for t in web for at in t["NetworksAttachments"] for a in at["Addresses"]}
        for node in storm.lab.nodes:
            identifier = next(n["ID"] for n in nodes if n["Description"]["Hostname"] == node.name)
            here = {task["ID"][:12] for task in alive if task["NodeID"] == identifier}
            spaces = {name for name in namespaces(node) if not name.startswith("1-")} - {"ingress_sbox"}
            assert spaces == here, node.name
            found = backends(node).get(("tcp", PORT, 4), [])
            assert len(found) == storm.replicas, node.name
            assert set(found) <= addresses, node.name
            assert drift(node) == [], node.name
    except (LabError, Refused) as error:
        raise AssertionError(str(error)) from error
