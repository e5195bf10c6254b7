"""Podman's service comes when it is needed and goes when it is not."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivemesh.engine.podman import PodmanEngine
from hivemesh.engine.service import PodmanService
from hivemesh.model.errors import Unavailable


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodmanService]:
    storage = tmp_path / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))
    made = PodmanService(tmp_path, idle=1)
    try:
        yield made
    finally:
        await made.close()


async def test_many_callers_start_one_service(service: PodmanService, tmp_path: Path) -> None:
    sockets = await asyncio.gather(*(service.ready() for _ in range(20)))
    assert set(sockets) == {tmp_path / "podman.sock"}
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)]
    assert [p.parent.name for p in running] == [str(service.pid)]


async def test_idle_service_ends_and_the_next_call_starts_another(service: PodmanService) -> None:
    await service.ready()
    first = service.pid
    async with asyncio.timeout(10):
        while service.pid is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await service.ready()
    assert service.pid not in (None, first)


async def test_killed_service_is_replaced_under_a_call(service: PodmanService) -> None:
    engine = PodmanEngine(service)
    try:
        assert await engine.list() == []
        assert service.pid is not None
        os.kill(service.pid, signal.SIGKILL)
        assert await engine.list() == []
    finally:
        await engine.close()


async def test_machine_without_podman_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="install it"):
        await PodmanService(tmp_path, command="no-such-podman").ready()


async def test_service_that_cannot_start_gives_its_reason(
    service: PodmanService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.conf").write_text("[storage\n")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "broken.conf"))
    with pytest.raises(Unavailable, match="does not start: toml: line 2"):
        await service.ready()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
