"""The engines that one suite runs over: Podman with an image made on the spot, and commands of the host.

A plugin of pytest's, for the modules that name it in `pytest_plugins`.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from engine_bed import IMAGE, Bed

from hivemesh.engine.api import Engine
from hivemesh.engine.podman import PodmanEngine
from hivemesh.engine.process import ProcessEngine
from hivemesh.engine.service import PodmanService
from private_podman import BUSYBOX, private_podman


@pytest.fixture(scope="session")
def podman_files() -> Iterator[dict[str, str]]:
    changes = ['ENTRYPOINT ["/bin/busybox"]']
    with private_podman(IMAGE, ("sh", "sleep", "cat", "hostname"), changes) as variables:
        yield variables


@pytest.fixture
def netns(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"hmt-eng-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture(params=["podman", "process"])
async def bed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    netns: str,
    podman_files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bed]:
    for name, value in podman_files.items():
        monkeypatch.setenv(name, value)
    engine: Engine
    if request.param == "podman":
        engine = PodmanEngine(PodmanService(tmp_path))
    else:
        engine = ProcessEngine(tmp_path / "process", {IMAGE: [BUSYBOX]})
    bed = Bed(engine, netns)
    try:
        yield bed
    finally:
        for info in await bed.engine.list():
            await bed.engine.remove(info.id)
        await bed.engine.close()
