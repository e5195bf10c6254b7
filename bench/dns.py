"""What the resolver answers in a second and what a question costs, beside Docker's own where that is installed.

`dnsperf` asks 127.0.0.11 in a task's namespace, as the container would. Processor time is that of the process that
answers: when it answers as many as it can, and at a rate both sides keep up with. Rates are measured again while the
control loops of the hivemesh swarm are busy: tasks of a service on the same network come and go, so that its names
change all the time.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import rig
from bench.ahead import FIRST, prefer
from bench.footprint import cpu
from bench.peers import DOCKERD, RIG
from bench.report import Measure, alternate, compare
from hivemesh.lab.lab import Lab
from hivemesh.lab.topology import UNDERLAY4

ROUNDS = 5
SECONDS = 2
RATE = 10_000
"""Questions per second when processor time is measured."""
NETWORK, SERVICE, BUSY = "dnsnet", "d", "busy"
MANY = 5000
QUESTIONS = {
    "a service's name": ([f"{SERVICE} A"], "twice Docker's rate, less than half its processor time"),
    "tasks.<service>, three answers": ([f"tasks.{SERVICE} A"], ""),
    "a service's name, the family it lacks": ([f"{SERVICE} AAAA"], ""),
    "forwarded, one name": (["a.up.test A"], "three times Docker's rate"),
    "forwarded, an answer to keep for a minute": (["kept.up.test A"], ""),
    f"forwarded, {MANY} names in turn": ([f"h{n}.up.test A" for n in range(MANY)], "three times Docker's rate"),
}
"""Other forwarded answers may not be kept (a TTL of 0), so none of them comes from a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One resolver: `enter` is what before a command runs it where a container of that side would."""

    enter: Sequence[str]
    pid: int
    waits: list[float] = field(default_factory=list)
    """Milliseconds from a question to its answer, on average, each time `cost` was measured."""
    full: list[float] = field(default_factory=list)
    """Microseconds of processor time per answer, each time `rate` was measured."""

    def ask(self, questions: Path, *extra: str) -> tuple[float, int, float]:
        """Answers per second, how many there were, and how many milliseconds each took on average."""
        command = [*self.enter, *FIRST, "dnsperf", "-s", "127.0.0.11", "-d", str(questions), "-l", str(SECONDS)]
        done = subprocess.run([*command, "-c", "4", "-q", "20", *extra], capture_output=True, text=True, check=True)
        rate = re.search(r"Queries per second:\s+([\d.]+)", done.stdout)
        count = re.search(r"Queries completed:\s+(\d+)", done.stdout)
        wait = re.search(r"Average Latency \(s\):\s+([\d.]+)", done.stdout)
        codes = re.search(r"Response codes:\s+(.*)", done.stdout)
        if not (rate and count and wait and codes) or "NOERROR" not in codes[1] or "," in codes[1]:
            raise RuntimeError(f"dnsperf: {done.stdout}{done.stderr}")
        return float(rate[1]), int(count[1]), float(wait[1]) * 1000

    def rate(self, questions: Path) -> float:
        """Answers per second with up to 20 questions under way."""
        before = cpu(self.pid)
        rate, count, _ = self.ask(questions)
        self.full.append((cpu(self.pid) - before) / count * 1e6)
        return rate

    def cost(self, questions: Path) -> float:
        """Microseconds of processor time per answer."""
        before = cpu(self.pid)
        _, count, wait = self.ask(questions, "-Q", str(RATE))
        self.waits.append(wait)
        return (cpu(self.pid) - before) / count * 1e6


def main(bed: Lab) -> None:
    """Prints five tables for each kind of question."""
    for command in ("dnsperf", "dnsmasq"):
        if shutil.which(command) is None:
            print(f"no benchmark of names: {command} is not installed (Debian: dnsperf, dnsmasq-base)")
            return
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        if DOCKERD.exists() and (RIG / "swarm.sh").exists():
            sides["Docker"] = stack.enter_context(docker())
        else:
            print(f"without Docker beside it: this needs Debian's docker.io and the rig in {RIG}")
        sides["hivemesh"] = stack.enter_context(ours(bed))
        for side in sides.values():
            prefer(side.pid)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for title, (lines, goal) in QUESTIONS.items():
            questions = folder / "questions"
            questions.write_text("\n".join(lines) + "\n")
            rates: dict[str, Measure] = {name: partial(side.rate, questions) for name, side in sides.items()}
            busy: dict[str, Measure] = {name: partial(while_busy, bed, rate) for name, rate in rates.items()}
            costs: dict[str, Measure] = {name: partial(side.cost, questions) for name, side in sides.items()}
            note = f"goal: {goal}" if goal else ""
            for side in sides.values():
                side.full.clear()
            compare(f"names: {title}", "answers/s", alternate(rates, ROUNDS), note)
            full = {name: list(side.full) for name, side in sides.items()}
            compare(f"names: {title}, as many as it can", "us of processor", full, note, 1)
            compare(f"names: {title}, a busy swarm beside it", "answers/s", alternate(busy, ROUNDS), note)
            for side in sides.values():
                side.waits.clear()
            compare(f"names: {title}, {RATE} a second", "us of processor", alternate(costs, ROUNDS), note, 1)
            waits = {name: side.waits for name, side in sides.items()}
            compare(f"names: {title}, {RATE} a second", "ms until the answer", waits, digits=2)


# --- hivemesh --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(bed: Lab) -> Iterator[Side]:
    """A service of three tasks, and one that is busy when told to."""
    rig.network(bed, NETWORK)
    with upstream(bed.topology.underlay, str(UNDERLAY4.ip)):
        for name, count, where in ((SERVICE, 3, ""), (BUSY, 1, "n2")):
            spec = rig.on_network(rig.service(name, count, [], where), NETWORK)
            spec["TaskTemplate"]["ContainerSpec"]["DNSConfig"] = {"Nameservers": [str(UNDERLAY4.ip)]}
            rig.create(bed, spec)
            rig.await_running(bed, name, count)
        task = rig.running(bed, SERVICE)[0]
        node = rig.node_of(bed, task)
        (resolver,) = (
            p for p in node.processes() if p.runs("hivemesh-resolver") or "hivemesh.dns.process" in p.arguments
        )
        yield Side(enter=node.command(rig.inside(task)), pid=resolver.pid)
        for name in (SERVICE, BUSY):
            rig.remove(bed, name)
        rig.remove_network(bed, NETWORK)


def while_busy(bed: Lab, measure: Measure) -> float:
    """What `measure` finds while tasks come and go."""
    over = threading.Event()

    def scale() -> None:
        while not over.is_set():
            for count in (2, 1):
                rig.scale(bed, BUSY, count)
                rig.await_running(bed, BUSY, count)

    worker = threading.Thread(target=scale)
    worker.start()
    try:
        return measure()
    finally:
        over.set()
        worker.join()


@contextlib.contextmanager
def upstream(namespace: str, address: str) -> Iterator[None]:
    """A name server that knows everything under up.test, for no time."""
    command = [
        "ip", "netns", "exec", namespace, *FIRST,
        "dnsmasq", "--keep-in-foreground", "--user=root", f"--listen-address={address}", "--bind-interfaces",
        "--no-hosts", "--no-resolv", "--address=/up.test/192.0.2.1",
        "--host-record=kept.up.test,192.0.2.2,60", "--conf-file=/dev/null", "--pid-file=",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


# --- Docker ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def docker() -> Iterator[Side]:
    """A swarm of one real dockerd with the same service, by the rig of `bench-peers`."""
    place = Path(tempfile.mkdtemp(prefix="hivemesh-peer-"))
    env = {**os.environ, "PEER": str(place), "NODES": "1"}
    upstream_address = "10.99.0.253"  # beside the rig's own server on its underlay

    def client(*arguments: str) -> str:
        command = ["/usr/bin/docker", "-H", f"unix://{place}/n1/docker.sock", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        subprocess.run(["bash", str(RIG / "swarm.sh"), "up"], env=env, check=True)
        subprocess.run(["ip", "-n", "peer-sw", "address", "add", f"{upstream_address}/24", "dev", "br0"], check=True)
        with upstream("peer-sw", upstream_address):
            client("network", "create", "--driver", "overlay", NETWORK)
            client("service", "create", "--detach", "--no-resolve-image", "--name", SERVICE, "--replicas", "3",
                   "--network", NETWORK, "--dns", upstream_address, "--stop-signal", "KILL",
                   "bb:latest", "httpd", "-f", "-p", "80", "-h", "/www")  # fmt: skip
            _await(lambda: len(client("ps", "--quiet").split()) == 3, "Docker's three tasks")
            time.sleep(2)  # its names come later than its containers
            container = client("ps", "--quiet").split()[0]
            sandbox = json.loads(client("inspect", container))[0]["NetworkSettings"]["SandboxKey"]
            init = int((place / "n1" / "init.pid").read_text())
            enter = ["nsenter", f"--target={init}", "--mount", "--net", "--uts", "--pid", "--"]
            yield Side(enter=[*enter, "nsenter", f"--net={sandbox}", "--"], pid=_child(init, "dockerd"))
    finally:
        subprocess.run(["bash", str(RIG / "swarm.sh"), "down"], env=env, check=False)
        shutil.rmtree(place, ignore_errors=True)


def _child(parent: int, command: str) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == command)


def _await(true: Callable[[], bool], what: str, timeout: float = 120) -> None:
    until = time.monotonic() + timeout
    while not true():
        if time.monotonic() > until:
            raise RuntimeError(f"no {what} within {timeout:g} s")
        time.sleep(0.2)
