"""The systemd unit that brings a node back to its swarm at each boot.

Containers, the resolver and etcd live on while the daemon is started anew, so stopping the unit ends the daemon only.
At shutdown systemd ends all that is left.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hivemesh.model.errors import Unavailable

NAME = "hivemesh.service"
DIRECTORY = Path("etc/systemd/system")
PROGRAM = "hivemeshd"
BOOTED = Path("/run/systemd/system")
"""There when systemd runs this machine (sd_booted(3))."""
TIMEOUT = 90
"""Seconds for one call of systemctl; starting waits until the daemon is ready."""
UNIT = """\
[Unit]
Description=hivemesh: swarm mode on Podman
# An address to be reached at; and whoever loads firewall rules at boot has done so.
Wants=network-online.target
After=network-online.target nftables.service firewalld.service ufw.service
# Try for ever: a machine that boots alone waits for its managers.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=always
RestartSec=1
WatchdogSec=60
TimeoutStopSec=30
# Containers, names and packets carry on without the daemon.
KillMode=process
SendSIGKILL=yes
# Podman and etcd make groups of their own below ours.
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""


def unit(command: Sequence[str]) -> str:
    """The unit's text. `command` is a program with its full path, and its arguments."""
    return UNIT.format(command=" ".join(_quoted(word) for word in command))


def install(options: Sequence[str], *, start: bool, root: Path = Path("/")) -> str:
    """Write the unit, enable it, and with `start` (re)start it; what to tell the user. Repeatable.

    `root` is another tree than the running machine's, such as an image's. Raises `Unavailable`.
    """
    _require(root)
    path = root / DIRECTORY / NAME
    text = unit([_program(), *options])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror or error}") from error
    running = _running(root)
    if running:
        _systemctl(root, "daemon-reload")
    _systemctl(root, "enable", NAME)
    if not start:
        return f"{path} is enabled: the daemon starts at the next boot, or now with `systemctl start hivemesh`"
    if not running:
        raise Unavailable(f"{path} is enabled, but cannot be started now: systemd does not run this machine")
    _systemctl(root, "restart", NAME)
    return f"{path} is enabled and started; `journalctl -u hivemesh` shows its log"


def uninstall(*, root: Path = Path("/")) -> str:
    """Stop and disable the daemon, and remove the unit; what to tell the user. Fine when there is none."""
    _require(root)
    path = root / DIRECTORY / NAME
    if not path.exists():
        return f"there is no {path}: nothing to do"
    running = _running(root)
    _systemctl(root, "disable", *(["--now"] if running else []), NAME)
    try:
        path.unlink()
    except OSError as error:
        raise Unavailable(f"cannot remove {path}: {error.strerror or error}") from error
    if running:
        _systemctl(root, "daemon-reload")
    return f"{path} is removed. The node is a member of its swarm still, and its containers run on"


def _program() -> str:
    """The daemon beside the interpreter that runs us, else the first one in the path."""
    beside = Path(sys.executable).parent / PROGRAM
    found = str(beside) if beside.is_file() else shutil.which(PROGRAM)
    if found is None:
        raise Unavailable(f"{PROGRAM} is not in the path: install hivemesh as a package, with its programs")
    return str(Path(found).absolute())


def _quoted(word: str) -> str:
    """As systemd.service(5), "Command lines", has it: nothing in it is expanded."""
    if any(not letter.isprintable() for letter in word):
        raise Unavailable(f"the option {word!r} cannot stand in a unit: it has control characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(escaped) & set(" ;'\"\\") or not escaped else escaped


def _require(root: Path) -> None:
    if shutil.which("systemctl") is None:
        raise Unavailable(
            f"there is no systemctl: this machine has no systemd. Have its own way of starting services run {PROGRAM}, "
            "and leave the daemon's children alone when it is stopped"
        )
    if not root.is_dir():
        raise Unavailable(f"there is no directory {root}")


def _running(root: Path) -> bool:
    return root == Path("/") and BOOTED.is_dir()


def _systemctl(root: Path, *arguments: str) -> None:
    place = [] if root == Path("/") else [f"--root={root}"]
    command = ["systemctl", "--quiet", *place, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"`systemctl {arguments[0]}` takes longer than {TIMEOUT} s: see `journalctl -u hivemesh`"
        ) from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unavailable(f"`systemctl {arguments[0]}` failed: {words[-1]}; see `journalctl -u hivemesh`")
