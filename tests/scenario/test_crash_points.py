"""The daemon dies before each of the things it changes, one after the other, and is started again: what was begun is
finished or was never there, and nothing is left of it.

Long and short form differ in how many of those places are tried.
"""

import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from outside import drift, eventually, namespaces

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import LabError
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = pytest.mark.scenario

DOOMED = Path(__file__).parent.parent / "chaos" / "doomed" / "hivemeshd"
SERVICE, NETWORK = "web", "mesh"
ENDED = {"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
SETTLE = 30.0
"""Seconds for all to be as wanted, with a daemon that comes back on a busy machine."""
QUIET = 0.3
"""Seconds in which nothing more was changed: what was asked for is done."""
SHORT = 2
"""Places tried of each operation in `make test`."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """n1 manages, n2 works; both die on request."""
    with a_lab(LabSettings(nodes=2, engine="process")) as lab:
        for node in lab.nodes:
            _start(lab, node)
        lab.await_ready()
        first = lab.nodes[0]
        first.api("POST", "/networks/create", {"Name": NETWORK, "Driver": "overlay"})
        yield lab


def _order(node: Node) -> Path:
    return node.disk / "crash"


def _start(lab: Lab, node: Node) -> None:
    places = f"{node.disk / 'data'}:/run/hivemesh"
    lab.restart_daemon(
        node.name, command=("env", f"CRASH_AT={_order(node)}", f"CRASH_PLACES={places}", sys.executable, str(DOOMED))
    )


@dataclass(frozen=True)
class Work:
    """Something users do: `begin` asks for it, again if need be; `undo` makes ready for the next time."""

    name: str
    dies: int
    """Whose daemon: 0 the manager's, 1 the worker's."""
    begin: Callable[[Lab], None]
    replicas: int
    undo: Callable[[Lab], None]


def _spec(replicas: int) -> dict[str, Any]:
    return {
        "Name": SERVICE,
        "TaskTemplate": {
            "ContainerSpec": {"Image": "localhost/whoami", "StopGracePeriod": 1_000_000_000},
            "RestartPolicy": {"Condition": "any", "Delay": 50_000_000},
            "Networks": [{"Target": NETWORK}],
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
        "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8090}]},
    }


def _services(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.nodes[0].api("GET", "/services", timeout=5)
    return found


def create(lab: Lab) -> None:
    if not _services(lab):
        lab.nodes[0].api("POST", "/services/create", _spec(2), timeout=5)


def remove(lab: Lab) -> None:
    for service in _services(lab):
        lab.nodes[0].api("DELETE", f"/services/{service['ID']}", timeout=5)


def scale(lab: Lab, replicas: int) -> None:
    if not _services(lab):
        create(lab)
    (found,) = _services(lab)
    if found["Spec"]["Mode"]["Replicated"]["Replicas"] != replicas:
        found["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas
        path = f"/services/{found['ID']}/update?version={found['Version']['Index']}"
        lab.nodes[0].api("POST", path, found["Spec"], timeout=5)


def _state(node: Node) -> str:
    return str(node.api("GET", "/info", timeout=5)["Swarm"]["LocalNodeState"])


def leave(lab: Lab) -> None:
    second = lab.nodes[1]
    if _state(second) != "inactive":
        second.api("POST", "/swarm/leave", timeout=10)


def join(lab: Lab) -> None:
    first, second = lab.nodes
    if _state(second) == "inactive":
        body = {
            "RemoteAddrs": [f"{first.spec.v4.ip}:2377"],
            "JoinToken": first.api("GET", "/swarm")["JoinTokens"]["Worker"],
            "AdvertiseAddr": str(second.spec.v4.ip),
            "ListenAddr": "0.0.0.0:2377",
        }
        second.api("POST", "/swarm/join", body, timeout=20)


def forget(lab: Lab) -> None:
    """Nodes that left, or never came."""
    first = lab.nodes[0]
    for node in first.api("GET", "/nodes"):
        if node["Status"]["State"] != "ready":
            first.api("DELETE", f"/nodes/{node['ID']}?force=1")


def again(lab: Lab) -> None:
    _persist(lab, join)
    eventually(lambda: _assert_ready(lab), SETTLE)
    forget(lab)  # a node that left does not tell how its tasks ended
    eventually(lambda: _assert_settled(lab, 2), SETTLE)


def spread(lab: Lab) -> None:
    """A task on each node: those of a service that is there already stay together where they are."""
    _persist(lab, remove)
    eventually(lambda: _assert_settled(lab, 0), SETTLE)
    _persist(lab, create)
    eventually(lambda: _assert_settled(lab, 2), SETTLE)


def away(lab: Lab) -> None:
    _persist(lab, leave)
    eventually(lambda: _assert_gone(lab), SETTLE)
    forget(lab)


WORKS = (
    Work("create, manager", 0, create, 2, remove),
    Work("create, worker", 1, create, 2, remove),
    Work("scale up, manager", 0, lambda lab: scale(lab, 4), 4, lambda lab: scale(lab, 1)),
    Work("scale up, worker", 1, lambda lab: scale(lab, 4), 4, lambda lab: scale(lab, 1)),
    Work("scale down, manager", 0, lambda lab: scale(lab, 1), 1, lambda lab: scale(lab, 4)),
    Work("scale down, worker", 1, lambda lab: scale(lab, 1), 1, lambda lab: scale(lab, 4)),
    Work("leave, worker", 1, leave, 2, again),
    Work("leave, manager", 0, leave, 2, again),
    Work("join, worker", 1, join, 2, away),
    Work("join, manager", 0, join, 2, away),
)


@pytest.mark.parametrize("work", [WORKS[0], WORKS[5], WORKS[8]], ids=lambda work: str(work.name))
def test_a_daemon_killed_at_some_points_leaves_nothing_half_done(pair: Lab, work: Work) -> None:
    places = iter(sorted(random.sample(range(1, 25), SHORT)))
    _kill_at(pair, work, places)


@pytest.mark.soak
@pytest.mark.parametrize("work", WORKS, ids=lambda work: str(work.name))
def test_a_daemon_killed_at_each_point_leaves_nothing_half_done(pair: Lab, work: Work) -> None:
    tried = _kill_at(pair, work, itertools.count(1))
    assert tried > 3


def _kill_at(lab: Lab, work: Work, places: Iterable[int]) -> int:
    """How many places there were."""
    node = lab.nodes[work.dies]
    _ready_for(lab, work)
    tried = 0
    for place in places:
        log = Path(f"{_order(node)}.log")
        log.unlink(missing_ok=True)
        _order(node).write_text(str(place))
        try:
            _attempt(lab, work)
            died = _await_death(node, log)
        finally:
            _order(node).unlink()
        said = log.read_text().splitlines()[-1] if log.exists() else "nothing"
        print(f"{work.name}: {'died before' if died else 'lived, last'} {said}")
        if died:
            tried += 1
            _start(lab, node)
        _persist(lab, work.begin)
        try:
            eventually(lambda: _assert_done(lab, work), SETTLE)
        except AssertionError as error:
            raise AssertionError(f"{work.name}, killed before {said}: {error}") from error
        if not died:
            break
        work.undo(lab)
        _ready_for(lab, work)
    return tried


def _attempt(lab: Lab, work: Work) -> None:
    try:
        work.begin(lab)
    except (LabError, Refused, OSError):  # it died under our hands; or the other one has nobody to ask
        return


def _persist(lab: Lab, begin: Callable[[Lab], None]) -> None:
    """As users do who were told of an error: until it is done."""
    until = time.monotonic() + SETTLE
    while True:
        try:
            begin(lab)
            return
        except (LabError, Refused, OSError):
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _await_death(node: Node, log: Path) -> bool:
    """Whether it died; it did not when it changes nothing any more."""
    last, since = 0, time.monotonic()
    while time.monotonic() < since + 20 * QUIET:
        if node.daemon() is None:
            return True
        size = log.stat().st_size if log.exists() else 0
        if size != last:
            last, since = size, time.monotonic()
        elif size and time.monotonic() > since + 5 * QUIET:
            return False
        time.sleep(0.02)
    return False


def _ready_for(lab: Lab, work: Work) -> None:
    """As it is before that work, whichever was before."""
    if not work.name.startswith("join"):
        _persist(lab, join)
    if work.name.startswith("create"):
        _persist(lab, remove)
        eventually(lambda: _assert_settled(lab, 0), SETTLE)
    elif work.name.startswith("scale"):
        before = 1 if "up" in work.name else 4
        _persist(lab, lambda lab: scale(lab, before))
        eventually(lambda: _assert_settled(lab, before), SETTLE)
    else:
        _persist(lab, lambda lab: scale(lab, 2))
        if work.name.startswith("join"):
            away(lab)
        else:
            again(lab)
            spread(lab)


def _assert_done(lab: Lab, work: Work) -> None:
    if work.name.startswith("leave"):
        _assert_gone(lab)
    else:
        _assert_settled(lab, work.replicas)


def _assert_gone(lab: Lab) -> None:
    """The second node is in no swarm, and holds nothing of one; its tasks are the first one's now."""
    try:
        second = lab.nodes[1]
        assert _state(second) == "inactive"
        assert namespaces(second) == []
        assert _containers(second) == []
        links = json.loads(second.exec("ip", "-j", "link").stdout)
        assert {link["ifname"] for link in links} == {"lo", "eth0"}
        assert second.exec("nft", "list", "ruleset").stdout == ""
        assert _strays(second) == []
        left = {path.name for path in (second.disk / "data").iterdir()}
        assert left <= {"local", "web"}, left
        _assert_running(lab, [lab.nodes[0]], 2)
    except (LabError, Refused) as error:
        raise AssertionError(str(error)) from error


def _assert_settled(lab: Lab, replicas: int) -> None:
    """So many tasks run, nothing else does, and kernels hold what they should, no less and no more."""
    _assert_ready(lab)
    try:
        _assert_running(lab, list(lab.nodes), replicas)
    except (LabError, Refused) as error:
        raise AssertionError(str(error)) from error


def _assert_ready(lab: Lab) -> None:
    try:
        nodes = lab.nodes[0].api("GET", "/nodes", timeout=5)
    except (LabError, Refused) as error:
        raise AssertionError(str(error)) from error
    ready = sorted(node["Description"]["Hostname"] for node in nodes if node["Status"]["State"] == "ready")
    assert ready == [node.name for node in lab.nodes]


def _assert_running(lab: Lab, nodes: list[Node], replicas: int) -> None:
    first = lab.nodes[0]
    names = {node["ID"]: node["Description"]["Hostname"] for node in first.api("GET", "/nodes", timeout=5)}
    tasks = first.api("GET", "/tasks", timeout=5)
    alive = [
        task
        for task in tasks
        if task["Status"]["State"] not in ENDED and names.get(task["NodeID"]) in {node.name for node in nodes}
    ]
    assert {(task["Status"]["State"], task["DesiredState"]) for task in alive} <= {("running", "running")}, alive
    assert len(alive) == replicas
    addresses = [a for task in alive for at in task["NetworksAttachments"] for a in at["Addresses"]]
    assert len(addresses) == len(set(addresses))
    for node in nodes:
        here = {task["ID"][:12] for task in alive if names[task["NodeID"]] == node.name}
        spaces = {name for name in namespaces(node) if not name.startswith("1-")} - {"ingress_sbox"}
        assert spaces == here, node.name
        running = [p for p in node.processes() if p.runs("whoami")]
        assert len(running) == len(here), node.name
        known = {task["ID"][:12] for task in tasks}
        kept = {path.name[:12] for path in (node.disk / "data" / "agent" / "tasks").glob("*")}
        assert kept <= known, node.name
        assert drift(node) == [], node.name
        assert _strays(node) == [], node.name


def _containers(node: Node) -> list[str]:
    return [path.name for path in (node.run / "process").glob("*")]


def _strays(node: Node) -> list[str]:
    """Files that were to take another's place, and never did; but for those that the next one writes over."""
    return [
        str(path)
        for place in (node.disk / "data", node.run)
        for path in place.rglob("*")
        if path.is_file() and (path.name.startswith(".") != path.name.endswith(".new"))
    ]
