"""Waiting until a service is as asked, and showing how far it is."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from hivemesh.cli import output
from hivemesh.client import Client
from hivemesh.model.errors import HivemeshError

INTERVAL = 0.1
"""Seconds between looks."""
STABLE = 1.0
"""Seconds that all tasks must stay up before a service counts as converged."""

TERMINAL = {"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
UNWANTED = TERMINAL - {"complete"}
"""Desired states; a job's tasks should become complete."""
RANK = {
    state: rank
    for rank, state in enumerate(
        ("new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", *sorted(TERMINAL))
    )
}


class UpdatePaused(HivemeshError):
    """The managers stopped an update that went wrong."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a service is: per slot (or node) the state of its current task and what went wrong last."""

    wanted: int
    slots: Mapping[str, tuple[str, str]]
    goal: str = "running"  # of a job: "complete"

    @property
    def reached(self) -> int:
        return sum(state == self.goal for state, _ in self.slots.values())

    @property
    def converged(self) -> bool:
        return self.wanted == self.reached and len(self.slots) == self.wanted

    @property
    def text(self) -> str:
        return f"{self.reached} of {self.wanted} tasks {self.goal}"


def picture(service: Mapping[str, Any], tasks: list[dict[str, Any]], down: set[str]) -> Picture:
    """Of the up-to-date `tasks` of a service, not counting those on nodes that are down."""
    mode = service["Spec"]["Mode"]
    iteration = service.get("JobStatus", {}).get("JobIteration")
    current: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for task in sorted(tasks, key=lambda task: str(task["CreatedAt"])):
        if task.get("JobIteration") != iteration:
            continue
        slot = f"{task['Slot']:>2}" if "Slot" in task and "GlobalJob" not in mode else task.get("NodeID", "")
        if error := task["Status"].get("Err"):
            errors[slot] = error
        if task["DesiredState"] not in UNWANTED and task.get("NodeID") not in down:
            best = current.get(slot)
            if best is None or _rank(task) < _rank(best):
                current[slot] = task
    slots = {slot: (task["Status"]["State"], errors.get(slot, "")) for slot, task in current.items()}
    if "Replicated" in mode:
        return Picture(mode["Replicated"]["Replicas"], slots)
    if "ReplicatedJob" in mode:
        return Picture(mode["ReplicatedJob"]["TotalCompletions"], slots, "complete")
    return Picture(len(slots), slots, "complete" if "GlobalJob" in mode else "running")


def _rank(task: Mapping[str, Any]) -> int:
    return RANK.get(task["Status"]["State"], 0)


async def look(client: Client, identifier: str) -> tuple[dict[str, Any], Picture]:
    """The service and its picture, now."""
    filters = f'{{"service":{{"{identifier}":true}},"_up-to-date":{{"true":true}}}}'
    service, tasks, nodes = await asyncio.gather(
        client.get(f"/services/{identifier}"), client.get("/tasks", {"filters": filters}), client.get("/nodes")
    )
    down = {node["ID"] for node in nodes if node["Status"]["State"] == "down"}
    return service, picture(service, tasks, down)


async def converge(client: Client, identifier: str, *, quiet: bool) -> None:
    """Return once all tasks run and have stayed up for a moment. Interrupted, the operation goes on without us."""
    display = Silent() if quiet else Live() if output.on_terminal() else Lines()
    since: float | None = None
    with display:
        try:
            while True:
                service, seen = await look(client, identifier)
                update = service.get("UpdateStatus") or {}
                if update.get("State") in ("paused", "rollback_paused"):
                    kind = "rollback" if update["State"].startswith("rollback") else "update"
                    raise UpdatePaused(f"service {kind} paused: {update.get('Message', '')}")
                since = (since or time.monotonic()) if seen.converged else None
                if since is not None and time.monotonic() - since >= STABLE:
                    display.show(seen, "converged")
                    return
                display.show(seen, "all tasks run; checking that they stay up" if since else "")
                await asyncio.sleep(INTERVAL)
        except asyncio.CancelledError:
            with suppress(OSError):
                click.echo("Operation continues in the background; `hivemesh service ps` shows how it goes.", err=True)
            raise


class Silent:
    """Shows nothing."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, seen: Picture, note: str) -> None:
        pass


class Lines(Silent):
    """One line for each change, for logs and pipes."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, seen: Picture, note: str) -> None:
        problems = sorted({error for _, error in seen.slots.values() if error})
        text = seen.text
        text += f": {note}" if note else f"; {problems[0]}" if problems and not seen.converged else ""
        if text != self._last:
            click.echo(text, err=True)
            self._last = text


class Live(Silent):
    """A block on the terminal that follows each task."""

    LIMIT = 20
    """Tasks shown one by one; more than that only in sum."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as Block

        self._block = Block(console=Console(stderr=True), auto_refresh=False)

    def __enter__(self) -> "Live":
        self._block.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._block.stop()

    def show(self, seen: Picture, note: str) -> None:
        from rich.text import Text

        text = Text(seen.text)
        text.append(f": {note}" if note else "", style="green" if note == "converged" else "dim")
        if seen.wanted <= self.LIMIT:
            for slot, (state, error) in sorted(seen.slots.items()):
                text.append(f"\n  {slot}  ")
                text.append(f"{state:<10}", style="green" if state == seen.goal else "yellow")
                text.append(f" {error}" if error and state != seen.goal else "", style="red")
        self._block.update(text, refresh=True)
