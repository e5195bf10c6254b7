"""What a container's specification asks for is there: seen from inside, on every engine that can give it."""

import asyncio
import json
import os
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_bed import IMAGE, Bed

from hivemesh.engine.api import EngineError, LogOptions
from hivemesh.engine.machine import Machine
from hivemesh.engine.podman import PodmanEngine
from hivemesh.model.container import (
    AppArmor,
    BindOptions,
    ImageOptions,
    LogDriver,
    Mount,
    Privileges,
    Seccomp,
    SELinuxContext,
    TmpfsOptions,
    Ulimit,
    VolumeDriver,
    VolumeOptions,
)
from hivemesh.model.privilege import CAPABILITIES
from hivemesh.model.service import ResourceLimits, Resources

pytest_plugins = ("engine_beds",)


@pytest.fixture
def podman(bed: Bed) -> Bed:
    """For what only containers have."""
    if not isinstance(bed.engine, PodmanEngine):
        pytest.skip("a plain process has no files, processes or cgroups of its own")
    return bed


async def said(bed: Bed, script: str, **fields: Any) -> str:
    """What a shell in a container with these fields prints, all of it."""
    container = await bed.run("a", "sh", "-c", script, **fields)
    await asyncio.wait_for(bed.engine.wait(container), 20)
    return b"".join([line.text async for line in bed.engine.logs(container, LogOptions())]).decode()


def bits(*names: str) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def field(text: str, name: str) -> str:
    """Of /proc/PID/status."""
    found = re.search(rf"^{name}:\s*(.*?)\s*$", text, re.MULTILINE)
    assert found, text
    return found[1]


async def test_process_has_the_rights_limits_and_identity_asked_for(bed: Bed) -> None:
    text = await said(
        bed,
        "cat /proc/self/status /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; ulimit -Hc; pwd",
        user="1234:77",
        groups=("88", "99"),
        dir="/bin",
        capability_drop=("ALL",),
        capability_add=("CAP_NET_ADMIN", "kill"),
        ulimits=(Ulimit(name="nofile", soft=123, hard=456), Ulimit(name="core", soft=0, hard=4096)),
        oom_score_adj=321,
        privileges=Privileges(no_new_privileges=True),
    )
    assert field(text, "Uid").split() == ["1234"] * 4
    assert field(text, "Gid").split() == ["77"] * 4
    assert {"88", "99"} <= set(field(text, "Groups").split())
    assert int(field(text, "CapBnd"), 16) == bits("NET_ADMIN", "KILL")
    assert field(text, "NoNewPrivs") == "1"
    score, soft, hard, core, directory = text.split("\n")[-6:-1]
    assert (score, soft, hard, directory) == ("321", "123", "456", "/bin" if directory == "/bin" else "/tmp")
    assert int(core) * 512 == 4096 or int(core) == 4096


async def test_root_keeps_only_the_capabilities_it_is_left(bed: Bed) -> None:
    text = await said(bed, "cat /proc/self/status", capability_drop=("CHOWN", "CAP_NET_RAW"))
    effective = int(field(text, "CapEff"), 16)
    assert effective
    assert not effective & bits("CHOWN", "NET_RAW")


async def test_limit_without_end_is_given(bed: Bed) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert before[1] == resource.RLIM_INFINITY
    text = await said(bed, "ulimit -f; ulimit -Hf", ulimits=(Ulimit(name="fsize", soft=512 * 1024, hard=-1),))
    assert text.split() in (["1024", "unlimited"], ["512", "unlimited"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ulimits": (Ulimit(name="nofile", soft=1, hard=10**8),)}, "Ulimits: nofile cannot be raised to 100000000"),
        ({"oom_score_adj": -500}, "OomScoreAdj: -500 is less than the daemon's own"),
        ({"capability_add": ("SYS_RESOURCE",)}, "CapabilityAdd: the daemon on this machine lacks CAP_SYS_RESOURCE"),
    ],
)
async def test_what_the_machine_does_not_allow_is_refused_in_words(
    bed: Bed, fields: dict[str, Any], words: str
) -> None:
    if "SYS_RESOURCE" in Machine().capabilities():
        pytest.skip("this machine allows it")
    await bed.engine.ensure_image(IMAGE)
    with pytest.raises(EngineError, match=words):
        await bed.engine.create(bed.request("a", "sleep", "100", **fields))
    assert await bed.engine.list() == []


async def test_mounts_are_as_asked(podman: Bed, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file").write_text("x")
    image = Mount(type="image", source=IMAGE, target="/image")
    mounts = (
        Mount(type="bind", source=f"{tmp_path}/plain", target="/ro", read_only=True),
        Mount(
            type="bind", source=f"{tmp_path}/new/deep", target="/made",
            bind_options=BindOptions(create_mountpoint=True, non_recursive=True, propagation="rslave"),
        ),
        Mount(
            type="tmpfs", target="/tmp2",
            tmpfs_options=TmpfsOptions(size_bytes=1 << 16, mode=0o1770, options=(("exec",),)),
        ),
        Mount(type="tmpfs", target="/bin2", read_only=True),
        image,
    )  # fmt: skip
    text = await said(podman, "cat /proc/self/mountinfo; ls /image/bin; echo y >/made/written", mounts=mounts)
    at = {line.split()[4]: line for line in text.splitlines() if line.count(" ") > 8}
    assert " ro," in at["/ro"]
    assert (tmp_path / "new/deep/written").read_text() == "y\n"
    assert "size=64k,mode=1770" in at["/tmp2"]
    assert "nosuid" in at["/tmp2"]
    assert "noexec" not in at["/tmp2"]
    assert " ro,nosuid,nodev,noexec," in at["/bin2"]
    assert "busybox" in text.split()
    assert " ro" in at["/image"]


async def test_source_that_is_missing_is_not_made_unasked(podman: Bed, tmp_path: Path) -> None:
    missing = Mount(type="bind", source=f"{tmp_path}/missing", target="/x")
    await podman.engine.ensure_image(IMAGE)
    with pytest.raises(EngineError, match="missing"):
        await podman.engine.create(podman.request("a", "sleep", "1", mounts=(missing,)))
    assert not (tmp_path / "missing").exists()


async def test_volume_is_made_as_asked_kept_and_mounted_in_part(podman: Bed, podman_files: dict[str, str]) -> None:
    options = VolumeOptions(labels={"a": "b"}, driver_config=VolumeDriver(name="local"))
    whole = Mount(source="data", target="/data", volume_options=options)
    text = await said(podman, "mkdir -p /data/sub; echo kept >/data/sub/file; ls /bin", mounts=(whole,))
    await podman.engine.remove((await podman.engine.list())[0].id)
    part = Mount(source="data", target="/part", read_only=True, volume_options=VolumeOptions(subpath="sub"))
    copied = Mount(source="copied", target="/bin")
    bare = Mount(source="bare", target="/bin2", volume_options=VolumeOptions(no_copy=True))
    unnamed = Mount(target="/unnamed")
    script = "cat /part/file; touch /part/x || echo refused; ls /unnamed"
    text = await said(podman, script, mounts=(part, copied, bare, unnamed))
    assert text.startswith("kept\n")
    assert "refused" in text
    listing = await asyncio.to_thread(
        subprocess.run, ["podman", "volume", "inspect", "data"],
        env={**os.environ, **podman_files}, check=True, capture_output=True,
    )  # fmt: skip
    (volume,) = json.loads(listing.stdout)
    assert (volume["Labels"], volume["Driver"]) == ({"a": "b"}, "local")
    await podman.engine.remove((await podman.engine.list())[0].id)
    for subpath, words in (("nowhere", "no such file or directory"), ("../..", "leads out of volume data")):
        mount = Mount(source="data", target="/x", volume_options=VolumeOptions(subpath=subpath))
        with pytest.raises(EngineError, match=words):
            await podman.engine.create(podman.request("b", "sleep", "1", mounts=(mount,)))
    other = Mount(source="data", target="/x", volume_options=VolumeOptions(driver_config=VolumeDriver(name="other")))
    with pytest.raises(EngineError, match="made by the driver local"):
        await podman.engine.create(podman.request("b", "sleep", "1", mounts=(other,)))


async def test_container_is_confined_as_asked(podman: Bed) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}],
    }
    text = await said(
        podman,
        "touch /x || echo closed; cat /proc/1/comm /proc/sys/kernel/msgmax; mkdir /tmp2/a",
        read_only=True,
        init=True,
        sysctls={"kernel.msgmax": "9999"},
        mounts=(Mount(type="tmpfs", target="/tmp2"),),
        privileges=Privileges(
            seccomp=Seccomp(mode="custom", profile=json.dumps(profile).encode()),
            app_armor=AppArmor(mode="disabled"),
            selinux_context=SELinuxContext(disable=True),
        ),
    )
    assert "closed" in text
    assert "\n9999\n" in text
    assert "Cannot assign requested address" in text  # error 99: not made
    assert re.search("^(podman-init|tini-static|catatonit|docker-init)$", text, re.MULTILINE)


async def test_all_system_calls_are_allowed_where_asked(podman: Bed) -> None:
    open_to_all = Privileges(seccomp=Seccomp(mode="unconfined"))
    assert field(await said(podman, "cat /proc/self/status", privileges=open_to_all), "Seccomp") == "0"


async def test_resources_are_limited_as_asked(podman: Bed) -> None:
    if not Path("/sys/fs/cgroup/memory").exists():
        pytest.skip("read through cgroups of the first version")
    limits = ResourceLimits(memory_bytes=16 << 20, nano_cpus=500_000_000, pids=9)
    container = await podman.run(
        "a", "sleep", "100", resources=Resources(limits=limits, swap_bytes=8 << 20, memory_swappiness=7)
    )
    (info,) = await podman.engine.list()
    groups = {
        name: Path("/sys/fs/cgroup") / name / path.lstrip("/")
        for _, names, path in (line.split(":", 2) for line in Path(f"/proc/{info.pid}/cgroup").read_text().split())
        for name in names.split(",")
    }
    assert info.id == container
    for name, file, value in (
        ("memory", "memory.limit_in_bytes", 16 << 20),
        ("memory", "memory.memsw.limit_in_bytes", 24 << 20),
        ("memory", "memory.swappiness", 7),
        ("pids", "pids.max", 9),
        ("cpu", "cpu.cfs_quota_us", 50_000),
    ):
        assert int((groups[name] / file).read_text()) == value, file


async def test_output_goes_where_the_log_driver_says(podman: Bed) -> None:
    assert await said(podman, "echo hi", log_driver=LogDriver(name="json-file", options={"max-size": "10k"})) == "hi\n"
    await podman.engine.remove((await podman.engine.list())[0].id)
    with pytest.raises(EngineError, match="'none' log driver"):
        await said(podman, "echo hi", log_driver=LogDriver(name="none"))
    if not Machine().has_journal():
        with pytest.raises(EngineError, match="LogDriver journald: no journal runs on this machine"):
            await podman.engine.create(podman.request("b", "sleep", "1", log_driver=LogDriver(name="journald")))


async def test_host_without_selinux_refuses_a_label(podman: Bed) -> None:
    if Machine().has_selinux():
        pytest.skip("this machine has SELinux")
    label = Privileges(selinux_context=SELinuxContext(type="spc_t"))
    with pytest.raises(EngineError, match="SELinux is not enabled on this machine"):
        await podman.engine.create(podman.request("a", "sleep", "1", privileges=label))


async def test_plain_process_refuses_by_name_what_only_containers_have(bed: Bed) -> None:
    if isinstance(bed.engine, PodmanEngine):
        pytest.skip("Podman's containers have it")
    await bed.engine.ensure_image(IMAGE)
    request = bed.request(
        "a", "sleep", "1",
        read_only=True, init=True, tty=True, sysctls={"kernel.msgmax": "1", "net.core.somaxconn": "1"},
        mounts=(Mount(type="tmpfs", target="/t"), Mount(type="image", target="/i", image_options=ImageOptions())),
        resources=Resources(limits=ResourceLimits(pids=3)), log_driver=LogDriver(name="journald"),
        privileges=Privileges(seccomp=Seccomp(mode="custom")),
    )  # fmt: skip
    words = r"TTY, ReadOnly, Init, Privileges.Seccomp, Resources.Limits, LogDriver, Mounts \(/t\), Mounts \(/i\), "
    with pytest.raises(EngineError, match=words + r"Sysctls \(kernel.msgmax\): leave that out, or run the daemon with"):
        await bed.engine.create(request)
