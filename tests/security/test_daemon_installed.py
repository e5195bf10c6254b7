"""The unit that systemd gets, and what systemd hears from the daemon."""

import asyncio
import shutil
import socket
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hivemesh.cli import daemon
from hivemesh.daemon import install, notify
from hivemesh.model.errors import Unavailable

systemd = pytest.mark.skipif(shutil.which("systemctl") is None, reason="needs systemd's programs")
ANALYZE = "systemd-analyze"


@systemd
def test_unit_is_enabled_again_and_again_and_removed(tmp_path: Path) -> None:
    for _ in range(2):
        assert "is enabled: the daemon starts at the next boot" in install.install([], start=False, root=tmp_path)
    path = tmp_path / "etc/systemd/system/hivemesh.service"
    link = tmp_path / "etc/systemd/system/multi-user.target.wants/hivemesh.service"
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(Unavailable, match="systemd does not run this machine"):
        install.install([], start=True, root=tmp_path)
    assert "is removed" in install.uninstall(root=tmp_path)
    assert not path.exists()
    assert not link.is_symlink()
    assert "nothing to do" in install.uninstall(root=tmp_path)


@pytest.mark.skipif(shutil.which(ANALYZE) is None, reason="needs systemd-analyze")
def test_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    path = tmp_path / install.NAME
    path.write_text(install.unit(["/bin/true", "--label=a b", "--store=etcd://h?x=%20$y"]))
    checked = subprocess.run([ANALYZE, "verify", "--man=no", path], capture_output=True, text=True, timeout=60)
    ours = [line for line in checked.stderr.splitlines() if install.NAME in line]
    assert ours == []


def test_options_are_quoted_and_nothing_in_them_is_expanded() -> None:
    text = install.unit(["/bin/hivemeshd", '--label=a="b c"', "--label=p=100%", "--label=v=$HOME", "--label=s=a\\b"])
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert line == (
        'ExecStart=/bin/hivemeshd "--label=a=\\"b c\\"" --label=p=100%% --label=v=$$HOME "--label=s=a\\\\b"'
    )
    with pytest.raises(Unavailable, match="control characters"):
        install.unit(["/bin/hivemeshd", "--label=a\nExecStartPre=/bin/rm"])


def test_options_given_with_install_are_those_of_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def installed(options: list[str], *, start: bool) -> str:
        told.append(options)
        return f"start: {start}"

    monkeypatch.setattr(install, "install", installed)
    asked = "--install --start --data-dir=here -H unix:///run/x.sock --label=a=1 --label=b=2"
    given = CliRunner().invoke(daemon.main, [*asked.split(), "--node-generic-resource=SSD=3", "--group=wheel"])
    assert given.output == "start: True\n"
    assert told == [
        [
            f"--data-dir={Path.cwd()}/here", "--group=wheel", "--socket=/run/x.sock", "--label=a=1", "--label=b=2",
            "--node-generic-resource=SSD=3",
        ]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--start"], "--start belongs to --install"),
        (["--install", "--uninstall"], "choose --install or --uninstall"),
        (["-H", "tcp://0.0.0.0:2375"], "the API is served on a unix socket only"),
        (["-H", "tcp://0.0.0.0:2376"], "docker -H ssh://USER@HOST"),
        (["-H", "fd://"], "Use unix:///PATH"),
        (["-H", "unix:///a", "-H", "unix:///b"], "name it once"),
        (["-H", "unix:///a", "--socket", "/b"], "choose one"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_starts(options: list[str], words: str) -> None:
    result = CliRunner().invoke(daemon.main, options)
    assert result.exit_code == click.UsageError.exit_code
    assert words in " ".join(result.output.split())


async def test_systemd_hears_that_the_daemon_is_ready_and_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(str(tmp_path / "notify"))
        hearing.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        supervisor = notify.supervisor()
        assert supervisor == notify.Supervisor(str(tmp_path / "notify"), 0.01)
        assert notify.supervisor() is None  # children inherit nothing of it
        ready = asyncio.Event()
        telling = asyncio.create_task(notify.tell(supervisor, ready))
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            hearing.recv(99)
        ready.set()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            heard = [await loop.sock_recv(hearing, 99) for _ in range(3)]
        assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
