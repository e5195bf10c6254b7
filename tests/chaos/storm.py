"""Fate, bystanders and users, all at once: what a seed chooses to do to a lab of five nodes with three managers.

The seed decides what happens, to whom, how long, and in which order; how far the swarm has come meanwhile is up to the
machine. At most one manager is troubled at a time, so there is always a majority: what a lost one does is said in
words, and has a test of its own.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outside import inside, namespaces
from witness import GRACE, LOOKING, PATIENCE, REPAIR, Span, Witness

from hivemesh.config import WEB
from hivemesh.lab import faults
from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import LabError
from hivemesh.lab.node import Node

SERVICE, PORT, NETWORK, ASKERS = "web", 8090, "mesh", "asker"
IMAGE = "localhost/whoami"
FEWEST, MOST = 3, 8
CAUGHT_UP = 8.0
"""Seconds after which a manager that was cut off shows all that the others decided: its etcd finds theirs again."""
BACK = 25.0
"""Seconds until a node must have a session again, once nothing keeps it from one."""
STEP = 2400
"""Seconds a wall clock is stepped by, at most; certificates are good for an hour before they were made."""


@dataclass(slots=True)
class Trouble:
    """What was done to a node, and how it ends."""

    node: str
    words: str
    until: int
    """After how many more steps of the storm."""
    mend: Callable[[], None]


class Storm:
    """Does things to a lab and tells the witness. `acked` is what managers have promised to keep."""

    def __init__(self, lab: Lab, seed: int, witness: Witness) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.witness = witness
        self.managers = lab.nodes[:3]
        self.troubles: list[Trouble] = []
        self.log: list[str] = []
        self.acked: dict[str, float] = {}
        """Configs, and when a manager said they are there."""
        self.replicas = 5
        self.steps = 0
        self._began = time.monotonic()
        self._written = 0
        self._over: dict[str, float] = {}  # whose trouble ended when
        self._waiting: list[threading.Thread] = []

    # --- the whole --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The services that all of it is about."""
        for node in self.lab.nodes:
            self.lab.restart_daemon(node.name, command=faults.wrong_clock(self.lab, node.name))
        self.lab.await_ready()
        first = self.managers[0]
        swarm = first.api("GET", "/swarm")
        swarm["Spec"]["Dispatcher"]["HeartbeatPeriod"] = 1_000_000_000
        first.api("POST", f"/swarm/update?version={swarm['Version']['Index']}", swarm["Spec"])
        first.api("POST", "/networks/create", {"Name": NETWORK, "Driver": "overlay"})
        first.api("POST", "/services/create", self._spec())
        askers = {
            "Name": ASKERS,
            "TaskTemplate": {"ContainerSpec": {"Image": IMAGE}, "Networks": [{"Target": NETWORK}]},
            "Mode": {"Global": {}},
        }
        first.api("POST", "/services/create", askers)

    def step(self) -> None:
        """One more thing happens; troubles whose time has come are over."""
        actions: list[tuple[int, Callable[[], str]]] = [
            (6, self.write),
            (4, self.scale),
            (2, self.update),
            (3, self.kill_task),
            (5, self.kill_part),
            (4, self.kill_daemon),
            (2, self.restart_daemon),
            (5, self.damage),
            (3, self.cut),
            (2, self.cut_control),
            (2, self.lose),
            (2, self.delay),
            (2, self.step_clock),
        ]
        (action,) = self.random.choices([action for _, action in actions], [weight for weight, _ in actions])
        pause = self.random.uniform(0.1, 0.8)
        self._note(action())
        self.steps += 1
        for trouble in list(self.troubles):
            trouble.until -= 1
            if trouble.until <= 0:
                self._end(trouble)
        time.sleep(pause)

    def calm(self) -> None:
        """Every trouble ends."""
        for trouble in list(self.troubles):
            self._end(trouble)
        for waiting in self._waiting:
            waiting.join()

    def _note(self, words: str) -> None:
        self.log.append(f"{time.monotonic():.2f} (+{time.monotonic() - self._began:.1f} s) {words}")

    def _end(self, trouble: Trouble) -> None:
        trouble.mend()
        self._over[trouble.node] = time.monotonic()
        self.troubles.remove(trouble)
        self._note(f"over: {trouble.words}")

    # --- who --------------------------------------------------------------------------------------------------------

    def _victim(self) -> Node | None:
        """Somebody in no trouble, and no second manager; None when the choice fell on another."""
        node = self.random.choice(self.lab.nodes)
        others = [manager for manager in self.managers if manager is not node]
        if any(trouble.node == node.name for trouble in self.troubles):
            return None
        if node in self.managers and not all(manager in self.sound_managers() for manager in others):
            return None
        return node

    def _trouble(self, node: Node, words: str, steps: int, mend: Callable[[], None]) -> str:
        self.troubles.append(Trouble(node.name, words, steps, mend))
        return f"{words}, for {steps} steps"

    def sound_managers(self) -> list[Node]:
        """Those that nothing was done to, nor a moment ago."""
        troubled = {trouble.node for trouble in self.troubles}
        troubled |= {name for name, since in self._over.items() if time.monotonic() < since + CAUGHT_UP}
        return [node for node in self.managers if node.name not in troubled]

    def ask(self, method: str, path: str, body: object = None, *, of: int = 0, timeout: float = 20) -> Any:
        """A manager in no trouble, by number. Raises `Refused`, `LabError`."""
        sound = self.sound_managers()
        return sound[of % len(sound)].api(method, path, body, timeout=timeout)

    # --- users ------------------------------------------------------------------------------------------------------

    def _spec(self, version: int = 0) -> dict[str, Any]:
        return {
            "Name": SERVICE,
            "TaskTemplate": {
                "ContainerSpec": {"Image": IMAGE, "Env": [f"VERSION={version}"], "StopGracePeriod": 2_000_000_000},
                "RestartPolicy": {"Condition": "any", "Delay": 100_000_000},
                "Networks": [{"Target": NETWORK}],
            },
            "Mode": {"Replicated": {"Replicas": self.replicas}},
            "UpdateConfig": {"Parallelism": 2, "Order": "start-first"},
            "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": PORT}]},
        }

    def write(self) -> str:
        """A config: a small promise to keep."""
        self._written += 1
        name, which = f"c{self._written}", self.random.randrange(3)
        try:
            self.ask("POST", "/configs/create", {"Name": name, "Data": "aGl2ZQ=="}, of=which)
        except (Refused, LabError) as error:
            return f"config {name} was refused: {error}"
        self.acked[name] = time.monotonic()
        return f"config {name}"

    def scale(self) -> str:
        replicas, which = self.random.randint(FEWEST, MOST), self.random.randrange(3)
        return self._change(f"scale to {replicas}", which, lambda spec: self._set_replicas(spec, replicas))

    def _set_replicas(self, spec: dict[str, Any], replicas: int) -> None:
        self.replicas = replicas
        spec["Mode"]["Replicated"]["Replicas"] = replicas

    def update(self) -> str:
        which, version = self.random.randrange(3), self.steps

        def change(spec: dict[str, Any]) -> None:
            spec["TaskTemplate"]["ContainerSpec"]["Env"] = [f"VERSION={version}"]

        return self._change(f"update to version {version}", which, change)

    def _change(self, words: str, which: int, change: Callable[[dict[str, Any]], None]) -> str:
        """What the user wants is asked for until a manager takes it: a lost race, or no leader, ends neither."""
        since = time.monotonic()
        while True:
            try:
                found = self.ask("GET", f"/services/{SERVICE}", of=which)
                spec = found["Spec"]
                change(spec)
                with self.witness.ending():
                    self.ask("POST", f"/services/{SERVICE}/update?version={found['Version']['Index']}", spec, of=which)
                return words
            except (Refused, LabError) as error:
                if time.monotonic() > self.witness.pace.limit(2 * PATIENCE, since):
                    raise
                self._note(f"{words}, refused: {error}")
            time.sleep(0.1)

    # --- fate -------------------------------------------------------------------------------------------------------

    def kill_task(self) -> str:
        which, place = self.random.randrange(5), self.random.random()
        node = self.lab.nodes[which]
        running = sorted(p.pid for p in node.processes() if p.runs("whoami") and _version(p.pid))
        if not running:
            return f"no task to kill on {node.name}"
        pid = running[int(place * len(running))]
        with self.witness.ending():
            span = self.witness.excuse("a killed task")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._later(lambda: self._known(span, node))
        return f"kill a task on {node.name}"

    def _known(self, span: Span, node: Node) -> None:
        """The excuse ends a second after somebody could tell the managers, and they everybody."""
        while self.witness.is_apart(node.name, time.monotonic(), time.monotonic()):
            time.sleep(0.05)
        span.end = time.monotonic() + (PATIENCE if self._leaderless() else 0) + GRACE

    def _leaderless(self) -> bool:
        """Whether one may have to be elected."""
        return any(trouble.node in {node.name for node in self.managers} for trouble in self.troubles)

    def kill_part(self) -> str:
        node, part = self._victim(), self.random.choice(["resolver", "etcd"])
        if node is None or (part == "etcd" and node not in self.managers):
            return "nobody"
        if part == "resolver":
            self.witness.excuse("a killed resolver", node.name, GRACE)
        elif node.kill_part(part):
            self._over[node.name] = time.monotonic()  # it has to catch up with the others
            return f"kill etcd on {node.name}"
        node.kill_part(part)
        return f"kill the {part} on {node.name}"

    def kill_daemon(self) -> str:
        node, steps, both = self._victim(), self.random.randint(1, 6), self.random.random() < 0.4
        if node is None:
            return "nobody"
        span = self._part(node, "a dead daemon")
        node.kill_daemon()
        if both:
            node.kill_part("etcd")
        words = f"kill the daemon{' and etcd' if both and node in self.managers else ''} of {node.name}"
        return self._trouble(node, words, steps, lambda: self._start(node, span))

    def restart_daemon(self) -> str:
        node = self._victim()
        if node is None:
            return "nobody"
        span = self._part(node, "a restart")
        node.stop_daemon()
        self._start(node, span)
        return f"restart the daemon of {node.name}"

    def _start(self, node: Node, span: Span) -> None:
        self.lab.restart_daemon(node.name, command=faults.wrong_clock(self.lab, node.name))
        self._connected(node, span)

    def _part(self, node: Node, why: str) -> Span:
        """A manager that is gone may have led: then all are on their own, until another leads."""
        if node in self.managers:
            for other in self.lab.nodes:
                if other is not node:
                    self.witness.part(other.name, f"{why} of the leader").end = time.monotonic() + PATIENCE
        return self.witness.part(node.name, why)

    def _connected(self, node: Node, span: Span) -> None:
        """The span ends when the node has a session, and has taken what came with it."""

        def watch() -> None:
            since, wanted = time.monotonic(), None
            while (wanted := wanted or latest(self.lab, node)) is None or not holds(node, wanted):
                if time.monotonic() > self.witness.pace.limit(BACK, since):
                    self.witness.faults.append(f"{time.monotonic():.2f} {node.name} has no session {BACK:.0f} s later")
                    break
                time.sleep(0.05)
            span.end = time.monotonic()

        self._later(watch)

    def _later(self, watch: Callable[[], None]) -> None:
        waiting = threading.Thread(target=watch, daemon=True)
        self._waiting = [each for each in self._waiting if each.is_alive()] + [waiting]
        waiting.start()

    # --- between machines -------------------------------------------------------------------------------------------

    def cut(self) -> str:
        """Nothing passes. Others lead to its tasks until it counts as down; it leads to theirs until it is back."""
        node, steps = self._victim(), self.random.randint(4, 14)
        if node is None:
            return "nobody"
        span, alone = self._part(node, "a cut"), self.witness.excuse("a cut", node.name)
        others = self.witness.excuse("a cut-off node")
        fault = faults.cut(self.lab, [node.name])

        def until_down() -> None:
            while others.end == float("inf") and not self._is_down(node):
                time.sleep(0.05)
            others.end = min(others.end, time.monotonic() + LOOKING + GRACE)

        def over() -> None:
            faults.mend(self.lab, fault)
            others.end = min(others.end, time.monotonic() + 2 * GRACE)  # what was sent just before comes late
            alone.end = time.monotonic() + 2 * GRACE
            self._connected(node, span)

        self._later(until_down)
        return self._trouble(node, f"cut {node.name} off", steps, over)

    def _is_down(self, node: Node) -> bool:
        try:
            nodes = self.ask("GET", "/nodes", timeout=2)
        except (Refused, LabError, ZeroDivisionError):
            return False
        return any(n["Description"]["Hostname"] == node.name and n["Status"]["State"] == "down" for n in nodes)

    def cut_control(self) -> str:
        """The managers' ports only: packets and tasks know nothing of it."""
        node, steps = self._victim(), self.random.randint(2, 12)
        if node is None:
            return "nobody"
        span = self._part(node, "a cut from the managers")
        fault = faults.cut(self.lab, [node.name], ports=faults.CONTROL_PORTS)

        def over() -> None:
            faults.mend(self.lab, fault)
            self._connected(node, span)

        return self._trouble(node, f"cut {node.name} off from the managers", steps, over)

    def lose(self) -> str:
        node, steps, percent = self._victim(), self.random.randint(1, 5), self.random.randint(1, 15)
        if node is None:
            return "nobody"
        lossy, span = self.witness.excuse("lost frames"), self._part(node, "lost frames")
        fault = faults.lose(self.lab, node.name, percent)

        def over() -> None:
            faults.mend(self.lab, fault)
            lossy.end = time.monotonic() + GRACE
            self._connected(node, span)

        return self._trouble(node, f"lose {percent} % of the frames of {node.name}", steps, over)

    def delay(self) -> str:
        node, steps, late = self._victim(), self.random.randint(2, 8), self.random.randint(5, 120)
        if node is None:
            return "nobody"
        self.witness.excuse("a cable that is pulled", seconds=2 * GRACE)  # and put into the relay
        span = self._part(node, "a slow cable")
        fault = faults.delay(self.lab, node.name, late, late // 4)

        def over() -> None:
            self.witness.excuse("a cable that is pulled", seconds=2 * GRACE)
            faults.mend(self.lab, fault)
            self._connected(node, span)

        return self._trouble(node, f"delay the frames of {node.name} by {late} ms", steps, over)

    def step_clock(self) -> str:
        node, seconds = self.random.choice(self.lab.nodes), self.random.randint(-STEP, STEP)
        faults.step_clock(self.lab, node.name, seconds)
        return f"step the clock of {node.name} to {seconds:+d} s"

    # --- bystanders -------------------------------------------------------------------------------------------------

    def damage(self) -> str:
        """Somebody changes what is ours. Where the daemon is dead nobody puts it right: not there."""
        node, what, place = self._victim(), self.random.choice(sorted(DAMAGE)), self.random.random()
        if node is None:
            return "nobody"
        sandboxes = sorted(each for each in namespaces(node) if len(each) == 12 and not each.startswith("1-"))
        overlays = sorted(each for each in namespaces(node) if each.startswith("1-"))
        spaces = {"host": [""], "ingress": ["ingress_sbox"], "overlay": overlays, "sandbox": sandboxes}
        kind, command = DAMAGE[what]
        chosen = spaces[kind]
        if not chosen:
            return f"no {kind} on {node.name}"
        space = chosen[int(place * len(chosen))]
        excuse = self.witness.excuse("damage")
        inside(node, space, "sh", "-c", command, check=False)
        excuse.end = time.monotonic() + REPAIR + GRACE
        return f"{what} in {space or 'the host'} of {node.name}"


DAMAGE = {
    "flush the ruleset": ("host", "nft flush ruleset"),
    "delete our table": ("host", "nft delete table inet hivemesh"),
    "take the gateway bridge down": ("host", "ip link set hm_gwbridge down"),
    "flush the mesh's table": ("ingress", "nft flush table inet hivemesh"),
    "flush the mesh's ruleset": ("ingress", "nft flush ruleset"),
    "delete the mesh's link": ("ingress", "ip link del eth0"),
    "delete the tunnel": ("overlay", "ip link del vxlan0"),
    "delete the bridge": ("overlay", "ip link del br0"),
    "flush forwarding entries": (
        "overlay",
        "bridge fdb show dev vxlan0 | grep dst | cut -d' ' -f1 | while read m; do bridge fdb del $m dev vxlan0; done",
    ),
    "flush neighbors": ("overlay", "ip neigh flush dev vxlan0 nud permanent"),
    "delete a task's link": ("sandbox", "ip link del eth0"),
    "flush a task's ruleset": ("sandbox", "nft flush ruleset"),
    "flush a task's addresses": ("sandbox", "ip addr flush dev eth0 scope global"),
}


def latest(lab: Lab, node: Node) -> float | None:
    """The revision that the leader has sent to the node in this session, if both know of one."""
    if _metrics(node).get("hivemesh_manager_connected") != 1:
        return None
    told = (
        _metrics(manager).get(f'hivemesh_node_revision{{node="{node.name}",state="sent"}}') for manager in lab.nodes[:3]
    )
    return max((revision for revision in told if revision), default=None)


def holds(node: Node, revision: float) -> bool:
    """Whether its kernel has all of that."""
    own = _metrics(node)
    return (
        own.get("hivemesh_manager_connected") == 1 and own.get('hivemesh_view_revision{state="applied"}', 0) >= revision
    )


def _metrics(node: Node) -> dict[str, float]:
    page = node.exec("curl", "--silent", "--max-time", "2", f"http://{WEB}/metrics", check=False).stdout
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def _version(pid: int) -> bool:
    """Whether the process is a task of the service, and not one that asks."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environment:
            return b"VERSION=" in environment.read()
    except OSError:
        return False
