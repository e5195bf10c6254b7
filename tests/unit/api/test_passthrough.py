"""Containers and images are the engine's: the docker CLI reaches Podman through our API, streams and all."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from api_harness import Served, manager_api

from hivemesh.engine.service import PodmanService
from private_podman import private_podman

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")

IMAGE = "localhost/passthrough:latest"
RUN = ("run", "--rm", "--network", "none")


@pytest.fixture(scope="module")
def podman_files() -> Iterator[dict[str, str]]:
    with private_podman(IMAGE, ("sh", "sleep", "cat", "echo", "wc")) as variables:
        yield variables


@asynccontextmanager
async def beside_podman() -> AsyncIterator[Served]:
    async with manager_api() as api:
        service = PodmanService(api.socket.parent)
        try:
            api.machine.engine = await service.ready()
            yield api
        finally:
            await service.close()


@pytest.fixture
async def api(podman_files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    for name, value in podman_files.items():
        monkeypatch.setenv(name, value)
    async with beside_podman() as served:
        yield served


async def test_container_runs_and_its_streams_come_through(api: Served) -> None:
    assert IMAGE.partition(":")[0] in await api.docker("images")
    assert await api.docker(*RUN, IMAGE, "echo", "hello") == "hello\n"
    # The end of our input must reach the container while its output is still to come.
    assert await api.docker(*RUN, "-i", IMAGE, "sh", "-c", "cat; echo after", stdin=b"said\n") == "said\nafter\n"
    failed = await api.run("docker", *RUN, IMAGE, "sh", "-c", "echo oops >&2; exit 7")
    assert (failed.code, failed.err) == (7, "oops\n")


async def test_exec_logs_and_copies_work_on_a_running_container(api: Served, tmp_path: Path) -> None:
    await api.docker("run", "-d", "--name", "box", "--network", "none", IMAGE, "sh", "-c", "echo up; exec sleep 60")
    try:
        assert await api.docker("exec", "box", "echo", "hi") == "hi\n"
        size = 8 * 1024 * 1024
        assert (await api.docker("exec", "-i", "box", "wc", "-c", stdin=bytes(size))).strip() == str(size)
        assert len(await api.docker("exec", "-i", "box", "cat", stdin=b"a" * size)) == size
        assert (await api.run("docker", "exec", "box", "sh", "-c", "exit 3")).code == 3
        assert await api.docker("logs", "box") == "up\n"
        (tmp_path / "file").write_text("copied")
        await api.docker("cp", str(tmp_path / "file"), "box:/file")
        assert await api.docker("exec", "box", "cat", "/file") == "copied"
        await api.docker("cp", "box:/file", str(tmp_path / "back"))
        assert (tmp_path / "back").read_text() == "copied"
        assert "box" in await api.docker("ps", "--format", "{{.Names}}")
    finally:
        await api.docker("rm", "--force", "box")


async def test_limits_of_a_running_container_are_changed(api: Served) -> None:
    await api.docker("run", "-d", "--name", "box", "--network", "none", IMAGE, "sleep", "60")
    try:
        await api.docker("update", "--memory", "64m", "--memory-swap", "64m", "--pids-limit", "40", "box")
        shown = await api.client.get("/containers/box/json")
        pid = shown["State"]["Pid"]
        groups = {name: path for _, name, path in (
            line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        )}  # fmt: skip
        found = [
            path.read_text().strip()
            for path in (
                Path(f"/sys/fs/cgroup/memory{groups.get('memory', '')}/memory.limit_in_bytes"),
                Path(f"/sys/fs/cgroup{groups.get('', '')}/memory.max"),
            )
            if path.exists()
        ]
        assert str(64 << 20) in found
        assert "RestartPolicy" in await api.docker_error("update", "--restart", "always", "box")
        assert (
            "CgroupParent is not supported"
            in (
                await api.http(
                    "POST", "/containers/box/update", b'{"CgroupParent": "x"}', "Content-Type: application/json"
                )
            )[2]["message"]
        )
        assert "box" in (await api.docker("stats", "--no-stream", "box")).split()
        assert "nosuch" in await api.docker_error("stats", "--no-stream", "nosuch")
    finally:
        await api.docker("rm", "--force", "box")


async def test_image_is_loaded_from_a_stream(api: Served, tmp_path: Path) -> None:
    await api.docker("save", "--output", str(tmp_path / "image.tar"), IMAGE)
    await api.docker("tag", IMAGE, "localhost/other:latest")
    assert "Loaded image" in await api.docker("load", stdin=(tmp_path / "image.tar").read_bytes())
    assert "localhost/other" in await api.docker("images")


async def test_errors_come_in_the_engines_words(api: Served) -> None:
    status, _, answer = await api.http("GET", "/v1.51/containers/nosuch/json")
    assert status == 404
    assert "no such container" in answer["message"]
    refused = await api.docker_error("exec", "nosuch", "ls")  # older clients have words of their own for a 404
    assert "nosuch" in refused
    assert "no such container" in refused.lower()


async def test_engines_networks_stand_beside_the_swarms(api: Served) -> None:
    names = (await api.docker("network", "ls", "--format", "{{.Name}} {{.Scope}}")).splitlines()
    assert "ingress swarm" in names
    assert any(name.endswith(" local") for name in names)


async def test_events_of_swarm_and_engine_are_one_stream(api: Served) -> None:
    seen: list[tuple[str, str]] = []

    async def listen() -> None:
        async for event in api.client.lines("/events"):
            seen.append((event["Type"], event["Action"]))

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0.3)
    try:
        await api.docker(*RUN, IMAGE, "echo")
        await api.docker("network", "create", "--driver", "overlay", "back")
        async with asyncio.timeout(5):
            while ("network", "create") not in seen or ("container", "start") not in seen:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
    until = str(api.machine.clock.now())
    past = await api.docker("events", "--since", "1", "--until", until, "--filter", "type=container")
    assert " container start " in past
    assert " network " not in past


async def test_client_that_vanishes_leaves_no_connection_behind(api: Served) -> None:
    await api.docker("run", "-d", "--name", "quiet", "--network", "none", IMAGE, "sleep", "60")
    try:
        reader, writer = await asyncio.open_unix_connection(api.socket)
        writer.write(
            b"POST /containers/quiet/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"
            b"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert _pumps() > 0
        writer.close()
        async with asyncio.timeout(5):
            while _pumps():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        await api.docker("rm", "--force", "quiet")


def _pumps() -> int:
    return sum(task.get_name() in ("upload", "download") for task in asyncio.all_tasks())


async def test_gone_engine_is_said_and_info_still_answers(api: Served) -> None:
    api.machine.engine = api.socket.parent / "nosuch.sock"
    assert "the engine's API cannot be reached" in await api.docker_error("ps")
    info = await api.run("docker", "info", "--format", "{{.Swarm.LocalNodeState}}")
    assert (info.code, info.out) == (0, "active\n")
    assert "ingress" in await api.docker("network", "ls")


async def test_disk_usage_has_sizes_and_whole_names(api: Served) -> None:
    await api.docker("run", "-d", "--name", "used", "--network", "none", IMAGE, "sleep", "60")
    try:
        everything = await api.client.get("/system/df")
        assert everything["LayersSize"] >= max(image["Size"] for image in everything["Images"]) > 0
        assert [container["Names"] for container in everything["Containers"]] == [["/used"]]
        assert "used" in await api.docker("system", "df", "--verbose")
        assert "-" not in (await api.docker("system", "df", "--format", "{{.Reclaimable}}")).splitlines()[0]
        ours = await api.run(sys.executable, "-m", "hivemesh.cli", "system", "df", "--format=json")
        rows = {row["type"]: row for row in map(json.loads, ours.out.splitlines())}
        assert (rows["Containers"]["total"], rows["Containers"]["active"]) == (1, 1)
        assert list(await api.client.get("/system/df", {"type": "volume"})) == ["Volumes"]
        status, _, said = await api.http("GET", "/system/df?type=nosuch")
        assert (status, "unknown object type" in said["message"]) == (400, True)
    finally:
        await api.docker("rm", "-f", "used")
