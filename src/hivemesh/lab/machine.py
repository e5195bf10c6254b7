"""One machine of a lab: network, mount, UTS and process namespaces around a first process that only reaps.

The process namespace is more than a machine needs to look like one. It is what makes the end of a machine certain: the
kernel kills every process in it, whoever started them and wherever they were re-parented to, when the first one dies.

Nothing about a running machine is kept in a file. Its first process carries a mark as its name, and everything else is
found from there; so a lab whose records are lost or half written can still be listed and removed.

The lab uses util-linux and iproute2, never `hivemesh.kernel`: it must not lean on the code it is there to test.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from hivemesh.lab.topology import MachineSpec, Places
from hivemesh.model.errors import HivemeshError, NotFound

STOP_TIMEOUT = 10.0
"""Seconds that killed processes get to vanish; a kernel that is busy with their namespaces takes a second or two."""


class LabError(HivemeshError):
    """A step of building or using the lab failed; the message has the tool's own words."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a machine, as the real machine numbers it."""

    pid: int
    arguments: tuple[str, ...]

    def runs(self, command: str) -> bool:
        """Is it this command, called directly or through its interpreter?"""
        return command in (Path(argument).name for argument in self.arguments[:2])


class Machine:
    """A handle on one machine. Stateless: two handles on the same machine are as good as one."""

    def __init__(self, spec: MachineSpec, places: Places) -> None:
        self.spec = spec
        self.disk = places.machine_disk(spec)
        self.run = places.machine_run(spec)

    def __repr__(self) -> str:
        return f"<{self.spec.mark}>"

    @property
    def name(self) -> str:
        return self.spec.name

    def environment(self) -> dict[str, str]:
        """What commands run on the machine get on top of the caller's environment."""
        return {"DOCKER_HOST": "unix:///run/hivemesh/docker.sock"}

    def begin(self, hosts: Path) -> subprocess.Popen[str]:
        """Start the first process; `await_ready` waits for it. The network namespace must exist.

        What is returned ends at once; the first process is nobody's child, and lives on when we end.
        """
        self.disk.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(parents=True, exist_ok=True)
        with as_file(files("hivemesh.lab") / "machine.sh") as script:
            return subprocess.Popen(
                ["setsid", "--fork", "nsenter", f"--net=/run/netns/{self.spec.netns}",
                 "unshare", "--mount", "--uts", "--pid", "--fork", "--propagation", "private",
                 "bash", str(script), self.name, self.spec.mark, str(self.run), str(hosts)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def await_ready(self, starting: "subprocess.Popen[str]") -> None:
        """Raises `LabError` with what the machine's first process said instead."""
        starting.wait()
        said = []
        assert starting.stdout is not None
        with starting.stdout as lines:
            for line in lines:
                if line == "ready\n":
                    break
                said.append(line)
            else:
                raise LabError(f"machine {self.name} did not start: {''.join(said).strip()}")
        until = time.monotonic() + STOP_TIMEOUT
        while self.init_pid() is None:  # between saying so and taking its mark lies one exec
            if time.monotonic() > until:
                raise LabError(f"machine {self.name} has died while it started")
            time.sleep(0.005)

    def init_pid(self) -> int | None:
        """The machine's first process as the real machine numbers it; None when the machine is off."""
        for process in all_processes():
            if process.arguments[0] == self.spec.mark:
                return process.pid
        return None

    def _init(self) -> int:
        pid = self.init_pid()
        if pid is None:
            raise NotFound(f"lab {self.spec.lab} has no running machine {self.name}; see `hivemesh lab ls`")
        return pid

    def processes(self) -> list[Process]:
        """Processes of the machine itself; those of its containers have process namespaces of their own."""
        init = self.init_pid()
        if init is None:
            return []
        space = _namespace(init, "pid")
        return [p for p in all_processes() if p.pid != init and _namespace(p.pid, "pid") == space]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs `arguments` on the machine."""
        return ["nsenter", "--target", str(self._init()), "--mount", "--uts", "--net", "--pid", "--", *arguments]

    def exec(
        self, *arguments: str, input: str | None = None, check: bool = True, timeout: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        """Run a command on the machine and wait. Raises `LabError` on a non-zero exit code, unless `check` is off."""
        try:
            done = subprocess.run(
                self.command(arguments), input=input, capture_output=True, text=True, timeout=timeout, check=False,
                stdin=subprocess.DEVNULL if input is None else None,
                env={**os.environ, **self.environment(), **(environment or {})},
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise LabError(f"{self.name}: `{' '.join(arguments)}` did not end within {timeout:g} s") from late
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}: `{' '.join(arguments)}` failed ({done.returncode}): {said}")
        return done

    def spawn(self, arguments: Sequence[str], log: Path) -> None:
        """Start a command that stays, as an orphan of the machine: it outlives whoever asked for it."""
        subprocess.run(
            self.command(["setsid", "--fork", "bash", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "spawn", str(log),
                          *arguments]),
            stdin=subprocess.DEVNULL, env={**os.environ, **self.environment()}, check=True,
        )  # fmt: skip

    def stop(self) -> None:
        """Power off: every process of the machine, containers included, is gone on return."""
        init = self.init_pid()
        if init is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(init, signal.SIGKILL)
        _await_gone([init])


def all_processes() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended since the folder was read
            raw = Path("/proc", name, "cmdline").read_bytes()
            if raw:  # kernel threads and zombies have none
                yield Process(int(name), tuple(os.fsdecode(raw.removesuffix(b"\0")).split("\0")))


def kill(processes: Sequence[Process], signal_number: int) -> None:
    """Signal them and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal_number)
    _await_gone([process.pid for process in processes])


def _await_gone(pids: Sequence[int]) -> None:
    until = time.monotonic() + STOP_TIMEOUT
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > until:
            raise LabError(f"processes {', '.join(map(str, pids))} do not end; look at them with ps")
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def _namespace(pid: int, kind: str) -> int:
    """Its inode number, the namespace's identity; 0 for a process that has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return 0
