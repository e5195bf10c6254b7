"""Tasks start, stop, die and move at random while somebody on each node asks all names and connects to all answers.

No name may lead to a task whose end its manager has known for a second, of a machine that is not busy otherwise. The
seed is printed; `HIVEMESH_SEED=… pytest tests/scenario/test_names_stale.py` repeats a run's choices. `make soak` runs
the long form.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from names_asked import SLEEP, Asker, askers, network, service
from outside import TaskSeen, containers, drift, eventually, tasks_of

from hivemesh.lab.lab import Lab
from pace import Pace

pytestmark = pytest.mark.scenario

NAMES = ("s1", "s2", "s3")
ALIAS = "db"
MAX_REPLICAS = 4
STALE = 1.0
"""Seconds after a task's end is known in which a question or a connection may still lead there."""
EARLY = 1.0
"""Seconds a task may have served before we looked: the list is asked for time and again."""


# -- those who ask ----------------------------------------------------------------------------------------------------

_CHECK = """
import json, select, socket, sys, time
import dns.message, dns.rcode
log = open(sys.argv[1], "w")
names = sys.argv[2:]
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.settimeout(2)
asker.connect(("127.0.0.11", 53))
def ask(name):
    query = dns.message.make_query(name, "A")
    asker.send(query.to_wire())
    while True:
        answer = dns.message.from_wire(asker.recv(4096))
        if answer.id == query.id:
            return [item.address for part in answer.answer for item in part]
def fetch(address):
    try:
        with socket.create_connection((address, 80), timeout=1) as connection:
            connection.settimeout(1)
            connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            reply = b""
            while piece := connection.recv(65536):
                reply += piece
        return reply.split(b"Hostname: ")[1].split()[0].decode() if b"Hostname: " in reply else ""
    except OSError:
        return ""
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.005)[0]:
    for name in names:
        began = time.monotonic()
        try:
            addresses = ask(name)
        except OSError as error:
            addresses = None
        log.write(json.dumps(["name", began, name, addresses]) + "\\n")
        for address in addresses or ():
            began = time.monotonic()
            log.write(json.dumps(["address", began, address, fetch(address)]) + "\\n")
"""


@contextmanager
def checking(eye: Asker, log: Path, names: list[str]) -> Iterator[None]:
    command = ["ip", "netns", "exec", eye.task.id[:12], sys.executable, "-c", _CHECK, str(log), *names]
    with subprocess.Popen(
        eye.node.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.communicate("enough\n", timeout=30)
    assert process.returncode == 0


# -- what the manager knew, and when ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Life:
    """A task as its manager knew it: when it was first listed, when its end was. Times of the monotonic clock."""

    task: TaskSeen
    began: float
    ended: float = float("inf")

    def led_to(self, asked: float, pace: Pace) -> bool:
        """Somebody who asked then may have been led there."""
        if asked <= self.ended + STALE:
            return self.began - EARLY <= asked
        return asked <= self.ended + STALE * pace.slowness(self.ended, asked)


@dataclass(slots=True)
class History:
    lab: Lab
    lives: dict[str, Life] = field(default_factory=dict)
    failure: Exception | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def kept(self) -> Iterator[None]:
        thread = threading.Thread(target=self._follow)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        if self.failure:
            raise self.failure

    def _follow(self) -> None:
        try:
            while not self._stop.wait(0.03):
                self._look()
        except Exception as error:  # told to the test when it ends
            self.failure = error

    def _look(self) -> None:
        asked = time.monotonic()
        listed = {task.id: task for task in tasks_of(self.lab)}
        now = time.monotonic()
        for identifier, task in listed.items():
            life = self.lives.setdefault(identifier, Life(task, asked))
            life.task = task if task.addresses else life.task
            if task.state in ("complete", "failed", "shutdown", "rejected", "orphaned", "remove"):
                life.ended = min(life.ended, now)
        for identifier, life in self.lives.items():
            if identifier not in listed:
                life.ended = min(life.ended, now)

    def holders(self, address: str) -> list[Life]:
        return [life for life in self.lives.values() if address in life.task.addresses]

    def hosts(self, host: str) -> list[Life]:
        return [life for life in self.lives.values() if life.task.host == host]


# -- those who do things ----------------------------------------------------------------------------------------------


class Fate:
    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.replicas = dict.fromkeys(NAMES, 2)
        self.log: list[str] = []

    def act(self) -> None:
        act = self.random.choice([self.scale, self.scale, self.kill, self.kill, self.move])
        self.log.append(f"{time.monotonic():.3f} {act()}")
        time.sleep(self.random.uniform(0, 0.4))

    def scale(self) -> str:
        name, count = self.random.choice(NAMES), self.random.randint(0, MAX_REPLICAS)
        self.replicas[name] = count
        self._update(name, lambda spec: spec["Mode"]["Replicated"].update(Replicas=count))
        return f"scale {name} to {count}"

    def move(self) -> str:
        name, place = self.random.choice(NAMES), self.random.choice([node.name for node in self.lab.nodes])
        placement = {"Constraints": [f"node.hostname!={place}"]}
        self._update(name, lambda spec: spec["TaskTemplate"].update(Placement=placement))
        return f"move {name} off {place}"

    def kill(self) -> str:
        """A process dies; those of the askers live."""
        node = self.random.choice(self.lab.nodes)
        ours = {task.host for name in NAMES for task in tasks_of(self.lab, name)}
        pids = sorted(pid for name, pid in containers(node).items() if pid and name[:12] in ours)
        pick = self.random.random()
        if not pids:
            return f"nothing to kill on {node.name}"
        pid = pids[int(pick * len(pids))]
        node.exec("kill", "-KILL", str(pid), check=False)  # it may have ended by itself
        return f"kill process {pid} on {node.name}"

    def _update(self, name: str, change: Any) -> None:
        first = self.lab.nodes[0]
        found = first.api("GET", f"/services/{name}")
        change(found["Spec"])
        first.api("POST", f"/services/{name}/update?version={found['Version']['Index']}", found["Spec"])


# -- the test ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operations", [40, pytest.param(500, marks=pytest.mark.soak)], ids=["short", "long"])
def test_no_name_leads_to_a_task_that_has_ended(lab: Lab, tmp_path: Path, operations: int) -> None:
    seed = int(os.environ.get("HIVEMESH_SEED") or random.randrange(10**9))
    print(f"HIVEMESH_SEED={seed}")
    mynet = network(lab, "mynet")
    for node in lab.nodes:
        service(lab, f"eye-{node.name}", "--network", "mynet", "--constraint", f"node.hostname=={node.name}",
                command=SLEEP)  # fmt: skip
    for name in NAMES:
        service(lab, name, "--network", f"name=mynet,alias={ALIAS}", "--restart-max-attempts", "0",
                "--update-failure-action", "continue", *(("--endpoint-mode", "dnsrr") if name == "s3" else ()),
                replicas=2)  # fmt: skip
    eyes = [askers(lab, f"eye-{node.name}")[0] for node in lab.nodes]
    for name in NAMES:
        askers(lab, name, 2)
    asked = [*NAMES, ALIAS, *(f"tasks.{name}" for name in (*NAMES, ALIAS))]
    fate, history, pace = Fate(lab, seed), History(lab), Pace(tmp_path / "pace")
    vips: set[str] = {
        vip["Addr"].partition("/")[0]
        for name in NAMES
        for vip in lab.nodes[0].api("GET", f"/services/{name}")["Endpoint"].get("VirtualIPs") or ()
        if vip["NetworkID"] == mynet
    }
    logs = [tmp_path / eye.node.name for eye in eyes]
    try:
        with (
            pace,
            history.kept(),
            checking(eyes[0], logs[0], asked),
            checking(eyes[1], logs[1], asked),
            checking(eyes[2], logs[2], asked),
        ):
            time.sleep(0.3)
            for _ in range(operations):
                fate.act()
            eventually(lambda: assert_exact(lab, eyes, fate.replicas), 60)
            time.sleep(0.2)
    finally:
        print("\n".join(fate.log))
    wrong = [
        line for eye, log in zip(eyes, logs, strict=True) for line in judged(eye.node.name, log, history, vips, pace)
    ]
    assert wrong == [], "\n".join([str(pace), *wrong[:40]])


def assert_exact(lab: Lab, eyes: list[Asker], replicas: dict[str, int]) -> None:
    """Names, tasks and kernels agree."""
    for name, count in replicas.items():
        running = [task for task in tasks_of(lab, name) if task.state == task.desired == "running"]
        assert len(running) == count, (name, running)
        addresses = frozenset(address for task in running for address in task.addresses)
        for eye in eyes:
            assert eye.ask(f"tasks.{name}").data == addresses, (eye.node.name, name)
            assert bool(eye.ask(name).data) == bool(count), (eye.node.name, name)
    assert [drift(node) for node in lab.nodes] == [[], [], []]


def judged(where: str, log: Path, history: History, vips: set[str], pace: Pace) -> list[str]:
    """What somebody on a node was told that was wrong."""
    wrong, asked, met = [], 0, 0
    silent: list[tuple[float, str]] = []
    last: dict[str, float] = {}
    for line in log.read_text().splitlines():
        kind, began, what, found = json.loads(line)
        at = f"{began:.3f} on {where}:"
        if kind == "name":
            asked += 1
            if found is None:
                wrong.append(f"{at} nobody answers for {what}")
            for address in set(found or ()) - vips:
                lives = history.holders(address)
                if not any(life.led_to(began, pace) for life in lives):
                    wrong.append(f"{at} {what} is {address}, whose {lives} ended")
        elif found:
            met += 1
            last[found] = max(began, last.get(found, 0.0))
            lives = history.hosts(found)
            if not any(life.led_to(began, pace) for life in lives):
                wrong.append(f"{at} {found} answers at {what}, whose {lives} ended")
        elif what not in vips:
            silent.append((began, what))
    # Who is killed is silent from then on, and its node takes time to notice; who answers later, or stays, was alive.
    for began, what in silent:
        for life in history.holders(what):
            alive = last.get(life.task.host, 0.0) > began or life.ended == float("inf")
            if life.began <= began <= life.ended and alive:
                wrong.append(f"{began:.3f} on {where}: {what} does not answer, though its task lives: {life}")
    assert asked > 100, where
    assert met > 50, where
    return wrong
