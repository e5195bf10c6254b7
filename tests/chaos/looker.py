"""Looks at the managers, and at what kernels lead to, all the time; tells the witness."""

import contextlib
import subprocess
import threading
import time
from ipaddress import ip_interface
from typing import Any

from chaos_clients import Asked
from outside import backends
from storm import PORT, SERVICE, Storm
from witness import PATIENCE, TRAILS, Witness

from hivemesh.lab.http import Refused
from hivemesh.lab.machine import LabError

PAUSE = 0.2
ENDED = {"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
SILENCE = 2 * PATIENCE
"""Seconds in which no manager answered that nothing was done to: then something is wrong with them."""


class Looker:
    """A thread; `looks` has what kernels led to, for the judge."""

    def __init__(self, storm: Storm, witness: Witness) -> None:
        self.looks: list[Asked] = []
        self._storm = storm
        self._witness = witness
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._lost: set[str] = set()

    def __enter__(self) -> "Looker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number, heard = 0, time.monotonic()
        while not self._stop.wait(PAUSE):
            number += 1
            try:
                self._look_at_managers(number)
                heard = time.monotonic()
            except (Refused, LabError) as error:
                if time.monotonic() > self._witness.pace.limit(SILENCE, heard):
                    self._witness.faults.append(
                        f"{time.monotonic():.2f} no manager answers for {SILENCE:.0f} s: {error}"
                    )
                    heard = time.monotonic()
            with contextlib.suppress(LabError, subprocess.TimeoutExpired):
                self._look_at_kernel(number)

    def _look_at_managers(self, number: int) -> None:
        asked = time.monotonic()
        tasks = self._storm.ask("GET", "/tasks", of=number, timeout=5)
        nodes = self._storm.ask("GET", "/nodes", of=number, timeout=5)
        services = self._storm.ask("GET", "/services", of=number, timeout=5)
        configs = {each["Spec"]["Name"] for each in self._storm.ask("GET", "/configs", of=number, timeout=5)}
        told = time.monotonic()
        for name, acked in list(self._storm.acked.items()):
            if acked + TRAILS < asked and name not in configs | self._lost:
                self._lost.add(name)
                self._witness.faults.append(f"{asked:.2f} config {name} was promised and is lost")
        down = {node["ID"] for node in nodes if node["Status"]["State"] == "down"}
        (web,) = [each["ID"] for each in services if each["Spec"]["Name"] == SERVICE]
        own = [task for task in tasks if task["ServiceID"] == web]
        alive = {a for task in own if not _is_gone(task, down) for _, a in _addresses(task)}
        gone = {a for task in own if _is_gone(task, down) for _, a in _addresses(task)}
        self._witness.saw_gone(gone, alive, asked, told)
        owners = [
            (f"{address} on {network}", f"task {task['ID']}")
            for task in tasks
            if task["Status"]["State"] not in ENDED
            for network, address in _addresses(task)
        ]
        owners += [
            (f"{ip_interface(text).ip} on {vip['NetworkID']}", f"service {each['Spec']['Name']}")
            for each in services
            for vip in each["Endpoint"].get("VirtualIPs") or ()
            for text in vip["Addr"].split()
        ]
        self._witness.saw_addresses(owners, told)

    def _look_at_kernel(self, number: int) -> None:
        node = self._storm.lab.nodes[number % len(self._storm.lab.nodes)]
        asked = time.monotonic()
        found = backends(node).get(("tcp", PORT, 4), [])
        self.looks.append(Asked(node.name, "backends", asked, time.monotonic(), tuple(found), ""))


def _is_gone(task: dict[str, Any], down: set[str]) -> bool:
    return task["Status"]["State"] in ENDED or task.get("NodeID") in down


def _addresses(task: dict[str, Any]) -> list[tuple[str, str]]:
    """Network and address of each attachment."""
    return [
        (at["Network"]["ID"], str(ip_interface(text).ip))
        for at in task.get("NetworksAttachments") or ()
        for text in at["Addresses"]
    ]
