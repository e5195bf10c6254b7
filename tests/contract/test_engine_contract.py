"""One suite for every engine: Podman with an image made on the spot, and commands of the host."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
from engine_bed import IMAGE, TASK_LABEL, Bed

from hivemesh.engine.api import ContainerRequest, Engine, EngineError, ImageNotFound
from hivemesh.engine.podman import PodmanEngine
from hivemesh.engine.process import ProcessEngine
from hivemesh.engine.service import PodmanService
from hivemesh.model.service import ContainerSpec, HealthConfig, Resources
from private_podman import BUSYBOX

pytest_plugins = ("engine_beds",)


async def test_started_container_runs_inside_the_sandbox(bed: Bed) -> None:
    container = await bed.run("a", "sleep", "100")
    (info,) = await bed.engine.list()
    assert (info.id, info.state, info.labels[TASK_LABEL]) == (container, "running", "id-of-a")
    assert os.stat(f"/proc/{info.pid}/ns/net") == os.stat(bed.netns)


@pytest.mark.parametrize("code", [0, 3])
async def test_ended_process_gives_its_exit_code(bed: Bed, code: int) -> None:
    container = await bed.run("a", "sh", "-c", f"exit {code}")
    assert await asyncio.wait_for(bed.engine.wait(container), 10) == code
    (info,) = await bed.engine.list()
    assert (info.state, info.exit_code) == ("exited", code)


async def test_environment_reaches_the_process(bed: Bed) -> None:
    container = await bed.run("a", "sh", "-c", 'test "$WORD" = "a = b" && exit 7', env=("WORD=a = b",))
    assert await asyncio.wait_for(bed.engine.wait(container), 10) == 7


async def test_killed_process_is_seen_at_once(bed: Bed) -> None:
    container = await bed.run("a", "sleep", "100")
    deaths = bed.engine.events()
    waiting = asyncio.ensure_future(anext(deaths))
    await asyncio.sleep(0)
    (info,) = await bed.engine.list()
    os.kill(info.pid, 9)
    assert await asyncio.wait_for(waiting, 1) == container
    assert await asyncio.wait_for(bed.engine.wait(container), 10) == 137


async def test_stop_gives_the_process_its_grace(bed: Bed) -> None:
    script = 'trap "exit 5" TERM; while :; do sleep 0.05; done'
    container = await bed.run("a", "sh", "-c", script)
    await asyncio.sleep(0.2)  # until the trap stands
    await bed.engine.stop(container, "", 5)
    assert await bed.engine.wait(container) == 5


async def test_stop_uses_the_signal_asked_for(bed: Bed) -> None:
    script = 'trap "exit 6" USR1; while :; do sleep 0.05; done'
    container = await bed.run("a", "sh", "-c", script)
    await asyncio.sleep(0.2)
    await bed.engine.stop(container, "SIGUSR1", 5)
    assert await bed.engine.wait(container) == 6


async def test_deaf_process_is_killed_after_the_grace(bed: Bed) -> None:
    script = 'trap "" TERM; while :; do sleep 0.05; done'
    container = await bed.run("a", "sh", "-c", script)
    await asyncio.sleep(0.2)
    begun = asyncio.get_running_loop().time()
    await bed.engine.stop(container, "", 0.3)
    assert 0.3 <= asyncio.get_running_loop().time() - begun < 5
    assert await bed.engine.wait(container) == 137


async def test_every_call_may_be_repeated(bed: Bed) -> None:
    container = await bed.run("a", "sleep", "100")
    assert await bed.engine.create(bed.request("a", "sleep", "100")) == container
    again = await bed.engine.start(container)
    (info,) = await bed.engine.list()
    assert again.pid == info.pid
    for _ in range(2):
        await bed.engine.stop(container, "SIGKILL", 1)
    for _ in range(2):
        await bed.engine.remove(container)
    assert await bed.engine.list() == []


async def test_files_of_ours_stand_in_the_container_only(bed: Bed, tmp_path: Path) -> None:
    before = Path("/etc/hosts").read_text(), Path("/etc/resolv.conf").read_text()
    files = {}
    for name in ("hosts", "resolv.conf"):
        (tmp_path / name).write_text(f"# our own {name}\n")
        files[f"/etc/{name}"] = str(tmp_path / name)
    container = await bed.run("a", "sleep", "100", files=files)
    ran = await bed.engine.run(container, ["cat", "/etc/hosts", "/etc/resolv.conf"], 10)
    assert (ran.code, ran.output) == (0, "# our own hosts\n# our own resolv.conf\n")
    assert (Path("/etc/hosts").read_text(), Path("/etc/resolv.conf").read_text()) == before


async def test_secrets_are_read_but_not_written_and_are_gone_with_the_container(bed: Bed, tmp_path: Path) -> None:
    before = Path("/run/secrets").exists()
    (tmp_path / "key").write_text("hush")
    (tmp_path / "key").chmod(0o400)
    places = ("/run/secrets/key", "/run/secrets/deep/key")
    container = await bed.run("a", "sleep", "100", secrets=dict.fromkeys(places, str(tmp_path / "key")))
    ran = await bed.engine.run(container, ["cat", *places], 10)
    assert (ran.code, ran.output) == (0, "hushhush")
    ran = await bed.engine.run(container, ["sh", "-c", "echo x >/run/secrets/key"], 10)
    assert ran.code != 0
    assert not Path("/run/secrets/key").exists()
    await bed.engine.remove(container)
    assert Path("/run/secrets").exists() == before
    assert (tmp_path / "key").read_text() == "hush"


async def test_command_in_a_container_gives_output_and_exit_code(bed: Bed) -> None:
    container = await bed.run("a", "sleep", "100", env=("WORD=blue",))
    ran = await bed.engine.run(container, ["sh", "-c", "echo $WORD; echo no >&2; exit 3"], 10)
    assert (ran.code, ran.output) == (3, "blue\nno\n")


async def test_command_in_a_container_that_takes_too_long_is_killed(bed: Bed) -> None:
    container = await bed.run("a", "sleep", "100")
    with pytest.raises(TimeoutError):
        await bed.engine.run(container, ["sleep", "98.7654"], 1)
    sleeping = ["pgrep", "-f", "^sleep 98.7654"]
    for _ in range(100):
        if not (await asyncio.to_thread(subprocess.run, sleeping, capture_output=True)).stdout:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the command still runs")


async def test_command_in_an_ended_container_is_refused(bed: Bed) -> None:
    container = await bed.run("a", "sleep", "100")
    await bed.engine.stop(container, "SIGKILL", 1)
    await bed.engine.wait(container)
    with pytest.raises(EngineError):
        await bed.engine.run(container, ["sleep", "1"], 5)


async def test_image_says_what_its_containers_are_like(bed: Bed, podman_files: dict[str, str], tmp_path: Path) -> None:
    await bed.engine.ensure_image(IMAGE)
    plain = await bed.engine.describe(IMAGE)
    assert (plain.health, plain.exposed) == (None, ())
    if isinstance(bed.engine, PodmanEngine):
        recipe = tmp_path / "Containerfile"
        recipe.write_text(
            f"FROM {IMAGE}\nHEALTHCHECK --interval=7s --timeout=2s --retries=5 CMD test -e /healthy\n"
            'EXPOSE 80 53/udp\nENTRYPOINT ["/bin/sh"]\n'
        )
        build = [
            "podman",
            "build",
            "--quiet",
            "--format",
            "docker",
            "--tag",
            "localhost/checked",
            "--file",
            str(recipe),
        ]
        await asyncio.to_thread(
            subprocess.run, [*build, str(tmp_path)], env={**os.environ, **podman_files}, check=True, capture_output=True
        )
        health = HealthConfig(test=("CMD-SHELL", "test -e /healthy"), interval=7 * 10**9, timeout=2 * 10**9, retries=5)
        found = await bed.engine.describe("localhost/checked")
        assert (found.health, found.entrypoint) == (health, True)
        assert set(found.exposed) == {("tcp", 80), ("udp", 53)}


async def test_unknown_image_is_refused_in_words(bed: Bed) -> None:
    with pytest.raises(ImageNotFound, match="nosuchimage"):
        await bed.engine.ensure_image("localhost/nosuchimage:1")


async def test_unknown_command_is_refused_in_words(bed: Bed) -> None:
    await bed.engine.ensure_image(IMAGE)
    request = bed.request("a")
    spec = ContainerSpec(image=IMAGE, command=("/no/such/command",))
    broken = ContainerRequest(
        name="a", spec=spec, resources=Resources(), labels=request.labels, netns=bed.netns, hostname="box"
    )
    container = await bed.engine.create(broken)
    with pytest.raises(EngineError, match="/no/such/command"):
        await bed.engine.start(container)


async def test_container_outlives_its_engine_object(bed: Bed, tmp_path: Path, netns: str) -> None:
    container = await bed.run("a", "sh", "-c", "sleep 0.5; exit 9")
    before = (await bed.engine.list())[0].pid
    await bed.engine.close()
    fresh: Engine
    if isinstance(bed.engine, PodmanEngine):
        fresh = PodmanEngine(PodmanService(tmp_path))
    else:
        fresh = ProcessEngine(tmp_path / "process", {IMAGE: [BUSYBOX]})
    bed.engine = fresh
    (info,) = await fresh.list()
    assert (info.id, info.state, info.pid) == (container, "running", before)
    assert await asyncio.wait_for(fresh.wait(container), 10) == 9


async def test_engine_names_itself(bed: Bed) -> None:
    info = await bed.engine.info()
    assert info.name in ("podman", "process")
    assert info.version


def test_witness_sees_no_foreign_container(podman_files: dict[str, str]) -> None:
    """The storage is ours alone, so that what is removed here is nobody else's."""
    listing = subprocess.run(
        ["podman", "ps", "--all", "--format", "json"],
        env={**os.environ, **podman_files}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(listing.stdout or "[]") == []
