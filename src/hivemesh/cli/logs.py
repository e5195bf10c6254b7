"""`hivemesh service logs`: what tasks wrote, each line with the task and the node it came from."""

import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

import click

from hivemesh.cli import values
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client, Failed
from hivemesh.model.errors import Invalid, NotFound

HEAD = 8
"""Bytes in front of each line: which stream, three of zero, four of length."""
STDERR, SYSTEM_ERROR = 2, 3
SHORT = 12
NODE, SERVICE, TASK = (f"com.docker.swarm.{noun}.id" for noun in ("node", "service", "task"))


@dataclass(slots=True)
class Names:
    """What ids stand for, asked once each."""

    client: Client
    resolve: bool = True
    whole: bool = False
    with_task: bool = True
    _known: dict[tuple[str, str], Any] = field(default_factory=dict)

    async def of(self, details: Mapping[str, str]) -> str:
        """`web.1.jx3…@n2`."""
        task, node, service = details[TASK], details[NODE], details[SERVICE]
        slot = (await self._get("tasks", task)).get("Slot") or (node if self.whole else node[:SHORT])
        if self.resolve:
            service = (await self._get("services", service)).get("Spec", {}).get("Name") or service
            node = (await self._get("nodes", node)).get("Description", {}).get("Hostname") or node
        if self.with_task:
            return f"{service}.{slot}.{task if self.whole else task[:SHORT]}@{node}"
        return f"{service}.{slot}@{node}"

    async def _get(self, kind: str, identifier: str) -> Any:
        """Nothing for what is gone by now: its lines are still worth reading."""
        if (kind, identifier) not in self._known:
            try:
                self._known[kind, identifier] = await self.client.get(f"/{kind}/{identifier}")
            except NotFound:
                self._known[kind, identifier] = {}
        return self._known[kind, identifier]


@click.command()
@click.option("--details", is_flag=True, help="Show what else lines are marked with.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--no-resolve", is_flag=True, help="Show IDs instead of names.")
@click.option("--no-task-ids", is_flag=True, help="Leave out the IDs of tasks.")
@click.option("--no-trunc", is_flag=True, help="Show whole IDs.")
@click.option("--raw", is_flag=True, help="Only what was written, as it was written.")
@click.option("--since", metavar="TIME", help="Only from then on: 2026-01-02T13:23:37Z, unix seconds, or 42m ago.")
@click.option("-n", "--tail", default="all", metavar="N", help="The last lines of each task only (default all).")
@click.option("-t", "--timestamps", is_flag=True, help="Show when lines were written.")
@click.argument("ref", metavar="SERVICE|TASK")
@asynchronous
async def logs(
    client: Client,
    details: bool,
    follow: bool,
    no_resolve: bool,
    no_task_ids: bool,
    no_trunc: bool,
    raw: bool,
    since: str | None,
    tail: str,
    timestamps: bool,
    ref: str,
) -> None:
    """Show what the tasks of a service, or one task, wrote.

    \b
    Examples:
      hivemesh service logs web
      hivemesh service logs --follow --tail 10 --since 5m web
    """
    path, terminal = await _place(client, ref)
    if terminal and not raw:
        raise Invalid("tty service logs only supported with --raw")
    query = {"stdout": "1", "stderr": "1", "tail": tail, "follow": str(int(follow))}
    query |= {"timestamps": str(int(timestamps)), "details": str(int(details or not raw))}
    if since is not None:
        query["since"] = f"{moment(since, time.time()):.9f}"
    pieces = client.stream(path, query)
    if terminal:
        async for piece in pieces:
            _write(1, piece)
        return
    names = Names(client, resolve=not no_resolve, whole=no_trunc, with_task=not no_task_ids)
    problems = []
    async for stream, line in unframed(pieces):
        if stream == SYSTEM_ERROR:
            problems.append(line.decode(errors="replace").strip())
            continue
        _write(stream, line if raw else await _dressed(line, names, timestamps, details))
    if problems:
        raise Failed("; ".join(problems))


async def _place(client: Client, ref: str) -> tuple[str, bool]:
    """Where the lines are, and whether they come from a terminal."""
    try:
        found = await client.get(f"/services/{ref}")
        return f"/services/{found['ID']}/logs", _terminal(found["Spec"]["TaskTemplate"])
    except NotFound:
        pass
    try:
        found = await client.get(f"/tasks/{ref}")
    except NotFound:
        raise NotFound(f"no such task or service: {ref}") from None
    return f"/tasks/{found['ID']}/logs", _terminal(found["Spec"])


def _terminal(template: Mapping[str, Any]) -> bool:
    return bool((template.get("ContainerSpec") or {}).get("TTY"))


def moment(text: str, now: float) -> float:
    """Unix seconds of a time, or of a duration before `now`. Raises `Invalid`."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return now - values.duration(text) / 1e9
    except Invalid:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Invalid(
            f"invalid time {text!r}: write 2026-01-02T13:23:37Z, unix seconds, or a duration such as 42m"
        ) from None


async def unframed(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Streams and lines of a multiplexed answer."""
    rest = b""
    async for piece in pieces:
        rest += piece
        while len(rest) >= HEAD and len(rest) >= (end := HEAD + int.from_bytes(rest[4:HEAD], "big")):
            yield rest[0], rest[HEAD:end]
            rest = rest[end:]


async def _dressed(line: bytes, names: Names, timestamps: bool, details: bool) -> bytes:
    """`[time ]who@where    | [details ]text` of `[time ]details text`."""
    stamp, line = line.split(b" ", 1) if timestamps else (b"", line)
    marks, _, text = line.partition(b" ")
    split = (pair.partition("=") for pair in marks.decode().split(","))
    pairs = {unquote_plus(key): unquote_plus(value) for key, _, value in split}
    who = await names.of(pairs)
    rest = ",".join(f"{key}={value}" for key, value in pairs.items() if key not in (NODE, SERVICE, TASK))
    head = (stamp.decode() + " " if stamp else "") + who + "    | " + (rest + " " if details else "")
    return head.encode() + text


def _write(stream: int, data: bytes) -> None:
    out = sys.stderr if stream == STDERR else sys.stdout
    out.buffer.write(data)
    out.buffer.flush()
