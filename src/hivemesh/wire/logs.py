"""Lines of containers' output on their way from nodes to a manager: what an agent posts to `/v1/logs/<id>`.

The manager asks over the session (`LogsWanted`); the answer comes over a connection of its own, so that a talkative
container holds up neither views nor acknowledgements, and a slow reader holds up nobody but that container's reader.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from hivemesh.model.ids import TaskID
from hivemesh.model.task import Task
from hivemesh.wire.framing import Unframer

STDOUT, STDERR = 1, 2
MAX_LINE = 1024 * 1024
"""Bytes of one line and what goes with it; longer lines come in pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """What a reader wants."""

    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: float = 0.0  # unix seconds
    tail: int = -1  # lines per task; -1: all


class LogLine(msgspec.Struct, frozen=True, array_like=True, tag="line"):
    """One line, with the newline it ended with, if it did."""

    task: TaskID
    stream: int  # STDOUT or STDERR
    when: int  # unix nanoseconds
    text: bytes


class LogProblem(msgspec.Struct, frozen=True, array_like=True, tag="problem"):
    """Why the output of a task cannot be read (any further)."""

    task: TaskID
    reason: str


Entry = LogLine | LogProblem


def unframer() -> Unframer[Entry]:
    """For what an agent posts; entries are made by `framed`."""
    return Unframer(Entry, 2 * MAX_LINE)


def rfc3339(when: int) -> str:
    """UTC with nine digits of fraction: as wide for every line, as Docker's are."""
    seconds, rest = divmod(when, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def nanoseconds(text: str) -> int:
    """The inverse, for any zone and any number of digits. Raises `ValueError`."""
    date, dot, rest = text.partition(".")
    if not dot:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000
    digits = len(rest) - len(rest.lstrip("0123456789"))
    seconds = int(datetime.fromisoformat(date + rest[digits:]).timestamp())
    return seconds * 1_000_000_000 + int(f"{rest[:digits]:0<9}"[:9])


def details(task: Task) -> dict[str, str]:
    """What each line of a task is marked with; clients look names up by these (Docker's keys)."""
    return {
        "com.docker.swarm.node.id": task.node_id or "",
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.task.id": task.id,
    }
