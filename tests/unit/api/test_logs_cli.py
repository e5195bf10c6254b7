"""`hivemesh service logs` shows what `docker service logs` does: the docker CLI is the witness."""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterable

import pytest
from api_harness import Result, Served, manager_api

from hivemesh.cli.logs import moment
from hivemesh.model.errors import Invalid
from hivemesh.model.task import Task
from hivemesh.wire.logs import STDERR, STDOUT, Entry, LogLine, LogProblem, LogQuery

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")

WHEN = 1_700_000_000_123_456_789


class Desk:
    """Each task says the same two lines; what was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[LogQuery] = []
        self.problem = ""

    async def read(self, tasks: Callable[[], Iterable[Task]], query: LogQuery) -> AsyncIterator[Entry]:
        self.asked.append(query)
        for task in sorted(tasks(), key=lambda task: task.slot):
            yield LogLine(task.id, STDOUT, WHEN, b"to out = 1\n")
            yield LogLine(task.id, STDERR, WHEN + 10**9, b"to err\n")
            if self.problem:
                yield LogProblem(task.id, self.problem)


def desk_of(api: Served) -> Desk:
    desk = Desk()
    assert api.machine.manager is not None
    api.machine.manager.logs = desk  # type: ignore[assignment]
    return desk


async def ours(api: Served, *words: str) -> Result:
    return await api.run(sys.executable, "-m", "hivemesh.cli", "service", "logs", *words)


@pytest.mark.parametrize(
    "options",
    ["", "--raw", "--timestamps", "--no-trunc", "--no-task-ids", "--no-resolve", "--details", "--raw --details -t"],
)
async def test_lines_are_shown_as_docker_shows_them(options: str) -> None:
    async with manager_api() as api:
        await api.docker("service", "create", "-d", "--no-resolve-image", "--name=web", "--replicas=2", "x")
        desk = desk_of(api)
        task = (await api.docker("service", "ps", "-q", "--no-trunc", "web")).split()[0]
        for ref in ("web", task):
            witness = await api.run("docker", "service", "logs", *options.split(), ref)
            found = await ours(api, *options.split(), ref)
            assert (found.code, found.out, found.err) == (witness.code, witness.out, witness.err)
            assert "to out = 1" in found.out
            assert "to err" in found.err
            assert desk.asked[-1] == desk.asked[-2]


async def test_part_asked_for_is_passed_on() -> None:
    async with manager_api() as api:
        await api.docker("service", "create", "-d", "--no-resolve-image", "--name=web", "x")
        desk = desk_of(api)
        await ours(api, "--follow", "--tail=3", "--since=2026-01-02T13:23:37Z", "web")
        assert desk.asked == [LogQuery(follow=True, tail=3, since=1767360217.0)]


async def test_what_cannot_be_read_is_said_at_the_end() -> None:
    async with manager_api() as api:
        await api.docker("service", "create", "-d", "--no-resolve-image", "--name=web", "x")
        await api.docker("service", "create", "-d", "--no-resolve-image", "--name=screen", "--tty", "x")
        desk_of(api).problem = "node n2 is down"
        found = await ours(api, "web")
        assert (found.code, "node n2 is down" in found.err, "to out" in found.out) == (1, True, True)
        screen, raw = await asyncio.gather(ours(api, "screen"), ours(api, "--raw", "screen"))
        assert (screen.code, "tty service logs only supported with --raw" in screen.err) == (1, True)
        assert "to out = 1" in raw.out
        nobody = await ours(api, "nobody")
        assert (nobody.code, "no such task or service: nobody" in nobody.err) == (1, True)


def test_moments_are_read() -> None:
    assert moment("1700000000.5", 0) == 1700000000.5
    assert moment("1m30s", 100.0) == 10.0
    assert moment("2026-01-02T13:23:37+01:00", 0) == 1767356617.0
    with pytest.raises(Invalid, match=re.escape("invalid time 'noon': write 2026-01-02T13:23:37Z")):
        moment("noon", 0)
