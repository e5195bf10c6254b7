"""The swarm's side of a daemon is built anew when it failed, and ends when it is told to."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any, cast

import pytest

from hivemesh.clock import SystemClock
from hivemesh.config import DaemonConfig
from hivemesh.daemon import belonging
from hivemesh.daemon.belonging import Belonging


class FailingSide:
    """Fails at once, and takes its time to end."""

    def __init__(self) -> None:
        self.ending = asyncio.Event()
        self.runs = 0

    async def run(self) -> None:
        self.runs += 1
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._fail())
            tasks.create_task(self._end_slowly())

    async def _fail(self) -> None:
        await asyncio.sleep(0.01)
        raise OSError("the store is of another version")

    async def _end_slowly(self) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.ending.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> FailingSide:
    side = FailingSide()
    monkeypatch.setattr(belonging, "SwarmSide", lambda *args, **kwargs: side)
    monkeypatch.setattr(belonging, "RESTART_DELAY", 0)
    monkeypatch.setattr(Belonging, "identity", object())
    return side


def running(folder: Path) -> Belonging:
    config, machine = DaemonConfig(data_dir=folder, run_dir=folder), cast(Any, object())
    here = Belonging(config, SystemClock(), engine=machine, local=machine, hooks=machine)
    here._start_swarm()
    return here


async def test_side_that_fails_is_built_anew(side: FailingSide, tmp_path: Path) -> None:
    here = running(tmp_path)
    async with asyncio.timeout(5):
        while side.runs < 3:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
        await here._stop_swarm()


async def test_side_that_is_told_to_end_while_it_fails_is_not_built_anew(side: FailingSide, tmp_path: Path) -> None:
    here = running(tmp_path)
    await side.ending.wait()
    async with asyncio.timeout(5):
        await here._stop_swarm()
    assert side.runs == 1


async def started(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """And stopped again, in no swarm; beside it lie certificates."""
    (folder / "certificates").mkdir()
    (folder / "certificates" / "node.pem").write_text("a private key")
    monkeypatch.setattr(Belonging, "_start_plain", lambda self: None)
    config, machine = DaemonConfig(data_dir=folder, run_dir=folder, **more), cast(Any, object())
    here = Belonging(config, SystemClock(), engine=machine, local=machine, hooks=machine)
    here.start()
    await here.stop()


async def test_certificates_of_an_interrupted_leave_go_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await started(tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == []


async def test_key_of_a_state_that_is_still_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    await started(tmp_path, monkeypatch)
    assert (tmp_path / "certificates" / "node.pem").exists()


async def test_key_of_a_state_that_is_elsewhere_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await started(tmp_path, monkeypatch, store="etcd://192.0.2.1:2379")
    assert (tmp_path / "certificates" / "node.pem").exists()
