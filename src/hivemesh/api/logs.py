"""`/services/{ref}/logs` and `/tasks/{ref}/logs`: what tasks wrote, from whatever nodes they ran on."""

import re
from collections.abc import Callable, Iterable
from contextlib import aclosing
from urllib.parse import quote_plus

from aiohttp import web

from hivemesh.api.http import flag, manager_of
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.model.task import Task
from hivemesh.wire.logs import LogLine, LogQuery, details, rfc3339

routes = web.RouteTableDef()

RAW, MULTIPLEXED = "application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"
SYSTEM_ERROR = 3
"""The stream of what the engine itself has to say; clients end there with that message."""


@routes.get("/services/{ref}/logs")
async def service_logs(request: web.Request) -> web.StreamResponse:
    manager = manager_of(request)
    service = manager.service(request.match_info["ref"])
    return await _answer(
        request, service.spec.task_template.container_spec.tty, lambda: manager.tables.view.tasks_of(service.id)
    )


@routes.get("/tasks/{ref}/logs")
async def task_logs(request: web.Request) -> web.StreamResponse:
    manager = manager_of(request)
    task = manager.task(request.match_info["ref"])

    def now() -> list[Task]:
        found = manager.tables.view.get(Task, task.id)
        return [found] if found is not None else []

    return await _answer(request, task.spec.container_spec.tty, now)


async def _answer(request: web.Request, tty: bool, tasks: Callable[[], Iterable[Task]]) -> web.StreamResponse:
    manager, query = manager_of(request), _query(request)
    if manager.logs is None:
        raise Unavailable("this manager does not collect logs yet: try again in a moment")
    known = {task.id: task for task in tasks()}
    stamped, detailed = flag(request, "timestamps"), flag(request, "details")
    response = web.StreamResponse(headers={"Content-Type": RAW if tty else MULTIPLEXED})
    await response.prepare(request)  # clients that follow wait for the headers
    problems = []
    async with aclosing(manager.logs.read(tasks, query)) as entries:  # type: ignore[type-var]
        async for entry in entries:
            if not isinstance(entry, LogLine):
                problems.append(f"task {entry.task}: {entry.reason}")
                continue
            if entry.task not in known:
                known |= {task.id: task for task in tasks()}
            text = _text(entry, known.get(entry.task), stamped, detailed)
            await response.write(text if tty else _frame(entry.stream, text))
    if problems:
        text = f"warning: incomplete log stream. some logs could not be retrieved: {'; '.join(problems)}\n".encode()
        await response.write(text if tty else _frame(SYSTEM_ERROR, text))
    await response.write_eof()
    return response


def _text(entry: LogLine, task: Task | None, stamped: bool, detailed: bool) -> bytes:
    head = rfc3339(entry.when) + " " if stamped else ""
    if detailed and task is not None:
        labels = sorted(details(task).items())
        head += ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in labels) + " "
    return head.encode() + entry.text


def _frame(stream: int, text: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(text).to_bytes(4, "big") + text


def _query(request: web.Request) -> LogQuery:
    stdout, stderr = flag(request, "stdout"), flag(request, "stderr")
    if not stdout and not stderr:
        raise Invalid("must specify at least one of 'stdout' or 'stderr'")
    since, tail = request.query.get("since") or "0", request.query.get("tail") or "all"
    if not re.fullmatch(r"\d+(\.\d+)?", since):
        raise Invalid(f"invalid since {since!r}: give unix seconds")
    if tail != "all" and not re.fullmatch(r"-?\d{1,9}", tail):
        raise Invalid(f"invalid tail {tail!r}: give a number of lines, or all")
    lines = -1 if tail == "all" else int(tail)
    return LogQuery(
        stdout=stdout, stderr=stderr, follow=flag(request, "follow"), since=float(since), tail=max(lines, -1)
    )
