"""What both command lines say of a container arrives, is shown back, and changes: the docker CLI is the measure."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from api_harness import Served, manager_api

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")

CREATE = """--mount=type=bind,source=/tmp,target=/x,readonly,bind-propagation=rslave,bind-nonrecursive
    --mount=type=volume,source=v,target=/v,volume-nocopy,volume-label=a=b,volume-driver=local
    --mount=type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770
    --ulimit=nofile=100:200 --ulimit=core=-1 --sysctl=net.core.somaxconn=512 --sysctl=kernel.msgmax=9000
    --cap-add=NET_ADMIN --cap-drop=CAP_CHOWN --cap-drop=mknod --init --read-only --user=u:g --group=g1 --group=g2
    --stop-signal=SIGINT --stop-grace-period=3s --hostname=h --host=db:192.0.2.1 --dns=192.0.2.53 --workdir=/w
    --env=A=1 --env=B --container-label=c=d --tty --isolation=default --entrypoint=/srv
    --log-driver=json-file --log-opt=max-size=10m --limit-cpu=0.5 --limit-memory=64m --limit-pids=9"""
UPDATES = [
    line.split()
    for line in (
        "--mount-rm=/t --mount-add=type=tmpfs,target=/a --mount-add=type=volume,source=w,target=/v",
        "--ulimit-rm=core --ulimit-add=nproc=5 --sysctl-rm=kernel.msgmax --sysctl-add=net.core.somaxconn=9",
        "--cap-add=CHOWN --cap-drop=NET_ADMIN --cap-drop=KILL",
        "--cap-add=CHOWN --cap-drop=NET_ADMIN --cap-add=SYS_TIME --cap-drop=SYS_TIME",
        "--cap-drop=RESET --cap-drop=KILL --cap-add=ALL",
        "--group-rm=g1 --group-add=g0 --env-rm=A --env-add=C=3 --container-label-rm=c --container-label-add=e=f",
        "--log-driver=none --stop-signal=SIGTERM --user=v --host-rm=db --host-add=cache:192.0.2.2",
        "--read-only=false --init=false --tty=false",
    )
]
OURS = (sys.executable, "-m", "hivemesh.cli")


async def template(api: Served, name: str) -> Any:
    (found,) = json.loads(await api.docker("service", "inspect", name))
    return found["Spec"]["TaskTemplate"]


def said(value: Any) -> Any:
    """Without what is empty or false, which one client sends and the other leaves out; in an order of its own."""
    if isinstance(value, dict):
        kept = {key: said(inner) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner or (inner == 0 and inner is not False)}
    return sorted((said(inner) for inner in value), key=repr) if isinstance(value, list) else value


async def test_everything_said_of_a_container_is_shown_back() -> None:
    async with manager_api() as api:
        await api.docker(
            "service", "create", "--detach", "--no-resolve-image", "--name=web", *CREATE.split(), "x", "arg"
        )
        found = await template(api, "web")
        container = found["ContainerSpec"]
        assert container["Mounts"] == [
            {
                "Type": "bind", "Source": "/tmp", "Target": "/x", "ReadOnly": True,
                "BindOptions": {"Propagation": "rslave", "NonRecursive": True},
            },
            {
                "Type": "volume", "Source": "v", "Target": "/v",
                "VolumeOptions": {
                    "NoCopy": True, "Labels": {"a": "b"}, "DriverConfig": {"Name": "local"},
                },
            },
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1770}},
        ]  # fmt: skip
        assert container["Ulimits"] == [
            {"Name": "core", "Hard": -1, "Soft": -1},
            {"Name": "nofile", "Hard": 200, "Soft": 100},
        ]
        assert container["Sysctls"] == {"net.core.somaxconn": "512", "kernel.msgmax": "9000"}
        assert (container["CapabilityAdd"], container["CapabilityDrop"]) == (
            ["CAP_NET_ADMIN"],
            ["CAP_CHOWN", "CAP_MKNOD"],
        )
        assert (container["Isolation"], container["Init"]) == ("default", True)
        assert found["LogDriver"] == {"Name": "json-file", "Options": {"max-size": "10m"}}
        assert found["Resources"]["Limits"] == {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20, "Pids": 9}
        assert "Mounts:" in await api.docker("service", "inspect", "--pretty", "web")


async def test_our_command_makes_and_changes_what_docker_does() -> None:
    async with manager_api() as api:
        await api.docker(
            "service", "create", "--detach", "--no-resolve-image", "--name=theirs", *CREATE.split(), "x:latest"
        )
        made = await api.run(*OURS, "service", "create", "--detach", "--name=ours", *CREATE.split(), "x:latest")
        assert made.code == 0, made
        assert said(await template(api, "ours")) == said(await template(api, "theirs"))
        for change in UPDATES:
            await api.docker("service", "update", "--detach", *change, "theirs")
            plain = [word.removesuffix("=false") if "=false" in word else word for word in change]
            words = [f"--no-{word[2:]}" if word != given else word for word, given in zip(plain, change, strict=True)]
            changed = await api.run(*OURS, "service", "update", "--detach", *words, "ours")
            assert changed.code == 0, changed
            ours, theirs = said(await template(api, "ours")), said(await template(api, "theirs"))
            assert ours == theirs, change


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mount-rm=/none",), "this service has no mount at /none"),
        (("--ulimit-add=nofile",), "invalid ulimit 'nofile': write NAME=SOFT:HARD"),
        (("--sysctl-rm=a",), "this service has no sysctl a"),
        (("--log-opt=a=b",), "--log-opt needs --log-driver"),
        (("--credential-spec=file://x",), "it is for containers of Windows"),
        (("--isolation=hyperv",), "ContainerSpec.Isolation 'hyperv' is not supported: use default"),
        (("--log-driver=syslog",), "LogDriver syslog is not supported"),
        (("--sysctl-add=vm.swappiness=1",), "vm.swappiness is no container's own"),
    ],
)
async def test_slips_are_refused_in_words(options: tuple[str, ...], words: str) -> None:
    async with manager_api() as api:
        await api.run(*OURS, "service", "create", "--detach", "--name=web", "x")
        refused = await api.run(*OURS, "service", "update", "--detach", *options, "web")
        assert refused.code == 1
        assert words in refused.err


async def test_what_older_docker_clients_cannot_say_is_shown_back() -> None:
    options = """--oom-score-adj=-5 --memory-swap=1g --limit-memory=64m --memory-swappiness=0
        --mount=type=volume,source=v,target=/v,volume-subpath=s,readonly
        --mount=type=bind,source=/tmp,target=/x,bind-recursive=disabled,bind-create-src"""
    async with manager_api() as api:
        made = await api.run(*OURS, "service", "create", "--detach", "--name=web", *options.split(), "x")
        assert made.code == 0, made
        found = (await api.client.get("/services/web"))["Spec"]["TaskTemplate"]
        volume, bind = found["ContainerSpec"]["Mounts"]
        assert volume["VolumeOptions"] == {"Subpath": "s"}
        assert bind["BindOptions"] == {"NonRecursive": True, "CreateMountpoint": True}
        assert found["ContainerSpec"]["OomScoreAdj"] == -5
        assert (found["Resources"]["SwapBytes"], found["Resources"]["MemorySwappiness"]) == (1 << 30, 0)


async def test_variables_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nA=1\n\nB=two words\n")
    async with manager_api() as api:
        await api.run(*OURS, "service", "create", "-d", "--name=web", f"--env-file={tmp_path}/env", "--env=C=3", "x")
        assert (await template(api, "web"))["ContainerSpec"]["Env"] == ["A=1", "B=two words", "C=3"]


async def test_same_specification_said_in_other_words_restarts_nothing() -> None:
    async with manager_api() as api:
        await api.docker("service", "create", "-d", "--no-resolve-image", "--name=web", *CREATE.split(), "x:1")
        (before,) = json.loads(await api.docker("service", "inspect", "web"))
        tasks = await api.docker("service", "ps", "-q", "web")
        spec = before["Spec"]
        container = spec["TaskTemplate"]["ContainerSpec"]
        for name in ("Mounts", "Ulimits", "Groups", "CapabilityDrop"):
            container[name] = container[name][::-1]
        container |= {"Healthcheck": {}, "Privileges": {"AppArmor": {}}, "Configs": None, "Secrets": []}
        await api.client.post("/services/web/update", spec, {"version": before["Version"]["Index"]})
        assert await api.docker("service", "ps", "-q", "web") == tasks
