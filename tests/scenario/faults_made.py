"""The table of faults, made one at a time in a real lab: its rows speak of the kernel tests' nodes, here are others.

Agents put most faults right within moments. So the daemons of these labs wait with that while a fault is looked at
(`holding.py`): what the doctor and a trace say is what they would say in the moment before.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from names_asked import askers, service
from outside import await_served, drift, eventually

import faults
from faults import BETWEEN, INGRESS, OVERLAY, SANDBOX, Fault
from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

PORT = 8080
NAMES = {"n1": "n3", "n2": "n2", "198.51.100.11": "198.51.100.13", "198.51.100.13": "198.51.100.11"}
"""The table's nodes: its first one is n3 here, so that the manager's own ways are left as they are."""
TESTS = Path(__file__).parents[1]
CLEAN_TIMEOUT = 20.0
"""Seconds until the agents have put right what is left of a fault."""


def hold_repairs(lab: Lab, folder: Path) -> Path:
    """From now on the daemons repair nothing while the file that is returned stands there."""
    hold, program = folder / "hold", folder / "hivemeshd"
    program.write_text(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nfrom holding import main\nmain()\n")
    for node in lab.nodes:
        lab.restart_daemon(node.name, command=("env", f"HOLD_REPAIRS={hold}", sys.executable, str(program)))
    lab.await_ready()
    return hold


@dataclass(frozen=True)
class Told:
    """What a command said, and how long it took."""

    code: int
    document: Any
    seconds: float


@dataclass
class Placed:
    """A service with a published port whose only task is on n2; `names` leads from the table's words to the lab's."""

    lab: Lab
    hold: Path
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, lab: Lab, hold: Path) -> "Placed":
        service(lab, "faulty", "--publish", f"{PORT}:80", "--constraint", "node.hostname==n2")
        made = cls(lab, hold)
        made.settle()
        return made

    def settle(self) -> None:
        """Until one task runs and is served everywhere; a node that was cut off has ended the one before."""
        self.lab.await_ready()
        (task,) = askers(self.lab, "faulty")
        await_served(self.lab, 1, PORT, timeout=20)
        eventually(self.assert_clean, CLEAN_TIMEOUT)
        sandbox = task.task.id[:12]
        if self.names.get(SANDBOX) == sandbox:
            return
        (ingress,) = (n for n in self.lab.nodes[0].api("GET", "/networks") if n.get("Ingress"))
        overlay, near, far = f"1-{ingress['Id'][:10]}", self.lab.node("n3"), task.node
        end, way_in = link(far, sandbox, "eth0"), link(near, INGRESS, "eth1")
        plug = next(x for x in links(far, overlay) if x["ifindex"] == end["link_index"])
        self.names = {
            OVERLAY: overlay, SANDBOX: sandbox, faults.MAC: end["address"],
            faults.BACK_MAC: link(near, INGRESS, "eth0")["address"], "10.0.0.22": four(end), "172.18.0.2": four(way_in),
            "vethweb00000": plug["ifname"], **NAMES,
        }  # fmt: skip

    def local(self, text: str) -> str:
        """The table's words in those of this lab."""
        pattern = "|".join(rf"\b{re.escape(word)}\b" for word in self.names)
        return re.sub(pattern, lambda found: self.names[found[0]], text)

    def run(self, fault: Fault, commands: tuple[str, ...]) -> None:
        place = self.local(fault.place)
        for command in map(self.local, commands):
            words = (("ip", "netns", "exec", place) if place else ()) + tuple(command.split())
            if fault.node == BETWEEN:
                subprocess.run(["ip", "netns", "exec", self.lab.topology.underlay, *words], check=True)
            else:
                self.lab.node(self.local(f"n{fault.node}")).exec(*words)

    @contextmanager
    def broken(self, fault: Fault) -> Iterator[None]:
        """While the fault is there, and nobody puts it right; afterwards all is well again."""
        self.hold.touch()
        try:
            self.run(fault, fault.commands)
            yield
        finally:
            try:
                self.run(fault, fault.undo)
            finally:
                self.hold.unlink()
                self.settle()

    def assert_clean(self) -> None:
        for node in self.lab.nodes:
            assert drift(node) == [], node.name

    def trace(self, *options: str) -> Told:
        return told(self.lab.node(NAMES["n1"]), "trace", "--json", *options, f":{PORT}")

    def assert_traced(self, fault: Fault, found: Told) -> None:
        """The first finding of the trace is the fault's."""
        assert found.code == 1, found.document
        hop, fact = first_of(found.document)
        number, namespace = fault.where
        assert (hop["node"], hop["namespace"]) == (self.local(f"n{number}"), self.local(namespace)), (hop, fact)
        assert self.local(fault.what) in fact["what"], fact
        assert self.local(fault.cause) in fact["cause"], fact
        assert fact["proof"]

    def assert_diagnosed(self, fault: Fault, found: Told) -> None:
        """The first finding of the doctor is the fault's."""
        assert found.code in (1, 2), found.document
        first = found.document["findings"][0]
        said = " ".join(first[part] for part in ("what", "why", "remedy", "proof"))
        where = self.local(fault.doctor_at or f"n{fault.node}")
        assert (first["check"], first["where"]) == (fault.check, where), found.document["findings"]
        for words in (fault.doctor_says,) if fault.doctor_says else (fault.what, fault.cause):
            assert self.local(words) in said, first
        assert first["proof"], first


def links(node: Node, namespace: str) -> list[Any]:
    said: list[Any] = json.loads(node.exec("ip", "-n", namespace, "-j", "address", "show").stdout)
    return said


def link(node: Node, namespace: str, name: str) -> Any:
    (found,) = (x for x in links(node, namespace) if x["ifname"] == name)
    return found


def four(link: Any) -> str:
    """Its IPv4 address: of `ingress_sbox` the first, of its own."""
    address: str = next(a["local"] for a in link["addr_info"] if a["family"] == "inet")
    return address


def told(node: Node, *words: str) -> Told:
    """`hivemesh trace` or `doctor` there, as a JSON document."""
    begun = time.monotonic()
    done = node.exec("timeout", "30", "hivemesh", *words, check=False)
    took = time.monotonic() - begun
    assert done.stdout, done.stderr
    return Told(done.returncode, json.loads(done.stdout), took)


def first_of(trace: Any) -> tuple[Any, Any]:
    """The hop and the fact that a trace blames first: of plan and kernel, or else of the probe."""
    hops = [*trace["begin"], *(hop for way in trace["ways"] for hop in way["hops"]), *trace["end"]]
    found = [(hop, fact) for hop in hops for fact in hop["facts"] if not fact["agrees"]]
    found += [(hop, hop["probe"]) for hop in hops if hop.get("probe") and not hop["probe"]["agrees"]]
    return found[0]
