"""What Podman is asked, and what a machine asks of Podman."""

import dataclasses
import signal
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.engine import host
from hivemesh.engine.api import ContainerRequest, EngineError
from hivemesh.engine.host import HostNeeds, containers_conf, host_needs
from hivemesh.engine.libpod import Prepared, create_body, demultiplexed, docker_reference, words_of
from hivemesh.engine.processes import signal_number
from hivemesh.model.container import ContainerSpec, Mount
from hivemesh.model.service import Reservations, ResourceLimits, Resources

A = Prepared(image="a")


def request(spec: ContainerSpec, resources: Resources | None = None) -> ContainerRequest:
    return ContainerRequest(
        name="web.1.x", spec=spec, resources=resources or Resources(), labels={}, netns="/run/netns/x", hostname=""
    )


def test_command_and_arguments_replace_those_of_the_image() -> None:
    body = create_body(request(ContainerSpec(image="a", command=("/srv",), args=("-v",))), A)
    assert (body["entrypoint"], body["command"]) == (("/srv",), ("-v",))
    assert "entrypoint" not in create_body(request(ContainerSpec(image="a")), A)


def test_limits_are_given_as_the_kernel_counts() -> None:
    limits = Resources(
        limits=ResourceLimits(nano_cpus=1_500_000_000, memory_bytes=1 << 20, pids=7),
        reservations=Reservations(memory_bytes=1 << 19),
    )
    assert create_body(request(ContainerSpec(image="a"), limits), A)["resource_limits"] == {
        "cpu": {"period": 100_000, "quota": 150_000},
        "memory": {"limit": 1 << 20, "reservation": 1 << 19},
        "pids": {"limit": 7},
    }


def test_mounts_and_hosts_keep_their_meaning() -> None:
    spec = ContainerSpec(
        image="a",
        mounts=(
            Mount(type="bind", source="/etc", target="/e", read_only=True),
            Mount(type="volume", source="data", target="/d"),
            Mount(type="tmpfs", target="/t"),
        ),
        hosts=("192.0.2.1 one two", "2001:db8::1 six"),
    )
    body = create_body(request(spec), A)
    assert body["mounts"][0] == {"type": "bind", "source": "/etc", "destination": "/e", "options": ["rbind", "ro"]}
    assert body["volumes"] == [{"Name": "data", "Dest": "/d", "Options": ["rw"]}]
    assert body["healthconfig"] == {"Test": ["NONE"]}
    assert body["hostadd"] == ["one:192.0.2.1", "two:192.0.2.1", "six:2001:db8::1"]


def test_files_of_ours_keep_podman_from_writing_its_own() -> None:
    mine = Mount(type="bind", source="/srv/hosts", target="/etc/hosts")
    files = {"/etc/hosts": "/data/hosts", "/etc/resolv.conf": "/data/resolv.conf"}
    asked = dataclasses.replace(
        request(ContainerSpec(image="a", hosts=("192.0.2.1 one",), mounts=(mine,))), files=files
    )
    body = create_body(asked, A)
    assert (body["use_image_hosts"], body["use_image_resolve_conf"]) == (True, True)
    assert "hostadd" not in body  # they stand in our file
    assert {mount["destination"]: mount["source"] for mount in body["mounts"]} == {
        "/etc/hosts": "/srv/hosts",  # the user's own comes first
        "/etc/resolv.conf": "/data/resolv.conf",
    }
    assert len(body["mounts"]) == 2


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.integers(0, 60))
def test_output_of_a_command_is_put_together(pieces: list[tuple[int, bytes]], lost: int) -> None:
    stream = b"".join(bytes([which, 0, 0, 0]) + len(text).to_bytes(4) + text for which, text in pieces)
    whole = b"".join(text for _, text in pieces)
    assert demultiplexed(stream) == whole
    assert whole.startswith(demultiplexed(stream[: len(stream) - lost]))


def test_unknown_stop_signal_is_refused() -> None:
    with pytest.raises(EngineError, match="SIGNONE"):
        create_body(request(ContainerSpec(image="a", stop_signal="SIGNONE")), A)


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("", 15)],
)
def test_signals_are_known_by_name_and_number(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("me/web:2", "docker.io/me/web:2"),
        ("localhost/web", "localhost/web"),
        ("registry.example:5000/web", "registry.example:5000/web"),
    ],
)
def test_short_image_names_mean_what_docker_means(image: str, full: str) -> None:
    assert docker_reference(image) == full


def test_engines_words_survive_a_strange_answer() -> None:
    assert words_of(b'{"message":"no such image","cause":"x"}', 404) == "no such image"
    assert words_of(b"plain", 500) == "plain"
    assert "500" in words_of(b"", 500)


def test_modern_machine_needs_nothing_but_that_execs_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path, capabilities="000001ffffffffff", unified=True, systemd=True)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    needs = host_needs(cgroup=tmp_path / "cgroup", run=tmp_path / "run", proc=tmp_path / "proc")
    assert needs == HostNeeds()
    monkeypatch.setattr(host, "MACHINE_FILES", ())
    monkeypatch.delenv(host.CONF, raising=False)
    written = containers_conf(needs, tmp_path)
    assert written is not None
    assert tomllib.loads(written.read_text()) == {"engine": {"exit_command_delay": 5}}


def test_machine_with_old_cgroups_and_few_rights_gets_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path, capabilities="0000000000000000", unified=False, systemd=False)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    monkeypatch.setattr(host, "MACHINE_FILES", ())
    monkeypatch.delenv(host.CONF, raising=False)
    needs = host_needs(cgroup=tmp_path / "cgroup", run=tmp_path / "run", proc=tmp_path / "proc")
    assert "crun" in needs.why
    written = containers_conf(needs, tmp_path)
    assert written is not None
    settings = tomllib.loads(written.read_text())
    assert settings["engine"] == {
        "exit_command_delay": 5, "runtime": "runc", "cgroup_manager": "cgroupfs", "events_logger": "file",
    }  # fmt: skip
    assert [limit.partition("=")[0] for limit in settings["containers"]["default_ulimits"]] == ["nofile", "nproc"]


def test_settings_of_the_machine_come_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs.conf"
    theirs.write_text('[engine]\nruntime = "kata"\n[engine.runtimes]\nkata = ["/usr/bin/kata"]\n')
    monkeypatch.setattr(host, "MACHINE_FILES", (theirs, tmp_path / "missing.conf"))
    monkeypatch.delenv(host.CONF, raising=False)
    written = containers_conf(HostNeeds({"engine": {"runtime": "runc", "events_logger": "file"}}, "x"), tmp_path)
    assert written is not None
    assert tomllib.loads(written.read_text())["engine"] == {
        "exit_command_delay": 5, "runtime": "kata", "events_logger": "file", "runtimes": {"kata": ["/usr/bin/kata"]},
    }  # fmt: skip
    monkeypatch.setenv(host.CONF, str(theirs))
    assert containers_conf(HostNeeds({"engine": {"runtime": "runc"}}, "x"), tmp_path) is None


def picture(root: Path, *, capabilities: str, unified: bool, systemd: bool) -> None:
    """A machine as host_needs sees it."""
    for directory in ("cgroup", "run", "proc/self", "proc/sys/kernel"):
        (root / directory).mkdir(parents=True)
    if unified:
        (root / "cgroup/cgroup.controllers").touch()
    if systemd:
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "run/systemd/journal").mkdir()
    (root / "proc/self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities}\n")
    (root / "proc/sys/kernel/pid_max").write_text("32768\n")
