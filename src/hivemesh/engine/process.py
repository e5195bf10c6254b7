"""A command of the host, run inside a sandbox: for labs, benchmarks and machines without an engine.

It shares the machine's files, users and processes; only the network is the sandbox's own. Each "container" is a
directory under a root of the engine's own:

    <id>/container    what was asked (MessagePack)
    <id>/pid          /proc/PID/stat of the process before it became the command: its id and start time name it for good
    <id>/exit         exit code, written by a small shell that waits for the command
    <id>/log          what the command wrote

The shell has a session of its own and no tie to us, so a restart of the daemon finds everything in that directory. An
exit that nobody saw (a killed shell, a reboot) is reported as -1.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

import msgspec

from hivemesh.engine.api import (
    TASK_LABEL,
    ContainerInfo,
    ContainerRequest,
    EngineError,
    EngineInfo,
    ImageFacts,
    ImageNotFound,
    LogOptions,
    Output,
    Ran,
)
from hivemesh.engine.machine import Machine, refuse_impossible_process
from hivemesh.engine.plainprocess import prefix_of, refuse
from hivemesh.engine.processes import Processes, signal_number
from hivemesh.wire.logs import STDOUT

UNKNOWN_EXIT = -1
SECRETS = "/run/secrets/"
MADE = "made-run-secrets"
"""A note under our root that this directory is ours."""
KILL_TIMEOUT = 10.0
EXIT_TIMEOUT = 2.0
"""Seconds for the shell to write the exit code after the command has ended."""
LOOK_PERIOD = 0.2
"""Seconds between looks at what a process has written."""
START_TIMEOUT = 10.0
START_TIME = 19
"""Index of the start time in /proc/PID/stat, counted after the command's name (proc(5): field 22)."""

SHELL = """
cd "$HIVEMESH_DIR" || exit
sh -c 'dir=$HIVEMESH_DIR wd=$HIVEMESH_WD
unset HIVEMESH_DIR HIVEMESH_WD
read -r stat </proc/$$/stat
echo "$stat" >"$dir/pid.new" && mv "$dir/pid.new" "$dir/pid"
cd "$wd" || exit 126
exec "$@"' sh "$@"
echo $? >exit.new && mv exit.new exit
"""
"""The outer shell waits and writes the exit code; the inner one says who it is and becomes the command.

What changes user and rights (`prefix`) comes with the command: both shells need to write here.

The command runs in the foreground: a shell would start background ones with SIGINT and SIGQUIT ignored.
"""


WITH_FILES = """
while [ "$1" != -- ]; do
    if [ ! -e "$2" ]; then echo "this machine has no $2 in whose place $1 could stand" >&2
    else mount --bind "$1" "$2" || { echo 126 >"$HIVEMESH_DIR/exit"; exit 126; }
    fi
    shift 2
done
shift
own=
while [ "$1" != -- ]; do
    case $2 in
        /run/secrets/*)
            if [ -z "$own" ]; then
                mount -t tmpfs -o mode=0755,nosuid,nodev,noexec tmpfs /run/secrets && own=yes ||
                    { echo 126 >"$HIVEMESH_DIR/exit"; exit 126; }
            fi
            mkdir -p "${2%/*}" && : >"$2" ;;
    esac
    mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" || { echo 126 >"$HIVEMESH_DIR/exit"; exit 126; }
    shift 2
done
shift
exec "$@"
"""
"""In a mount namespace of its own, puts files in the place of those of the machine: source, target, …, `--`; then
secrets and configs, for reading only and, below /run/secrets, where the machine has none: source, target, …, `--`; then
the command.

Its mounts follow the machine's (`slave`): a copy of a namespace's name that stays would keep the namespace alive.
"""


class _Stored(msgspec.Struct, frozen=True):
    name: str
    labels: dict[str, str]
    command: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    netns: str
    prefix: tuple[str, ...] = ()  # what makes a command run as it should
    files: dict[str, str] = {}
    secrets: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Seen:
    pid: int = 0
    exit_code: int | None = None


class ProcessEngine:
    """Implements `Engine`. `images` maps an image's name to a command; others name an executable."""

    def __init__(self, root: Path, images: Mapping[str, Sequence[str]] | None = None) -> None:
        self._root = root.absolute()
        self._images = {_short(name): tuple(command) for name, command in (images or {}).items()}
        self._processes = Processes()

    async def info(self) -> EngineInfo:
        return EngineInfo(name="process", version="1")

    async def ensure_image(self, image: str, credential: str = "") -> None:
        self._command_of(image)

    async def describe(self, image: str) -> ImageFacts:
        return ImageFacts()

    async def create(self, request: ContainerRequest) -> str:
        container = hashlib.sha256(request.name.encode()).hexdigest()
        directory = self._root / container
        if (directory / "container").exists():
            return container
        spec = request.spec
        places = [path for path in request.secrets if not path.startswith(SECRETS) and not os.path.exists(path)]
        if places:
            raise EngineError(
                f"the process engine shares the machine's files, and this machine has no {', '.join(places)} in whose "
                f"place a config or secret could stand: choose a target below {SECRETS}"
            )
        refuse(request)
        machine = Machine()
        refuse_impossible_process(spec, machine, machine.capabilities())
        command = (spec.command or self._command_of(spec.image)) + spec.args
        stored = _Stored(
            name=request.name,
            labels=request.labels,
            command=command,
            environment={e.partition("=")[0]: e.partition("=")[2] for e in spec.env} | {"HOSTNAME": request.hostname},
            directory=spec.dir or "/",
            netns=request.netns,
            prefix=tuple(prefix_of(spec)),
            files=dict(request.files),
            secrets=dict(request.secrets),
        )
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / "container.new"
        temporary.write_bytes(msgspec.msgpack.encode(stored))
        temporary.rename(directory / "container")
        return container

    async def start(self, container: str) -> ContainerInfo:
        info = self._info(container)
        if info is None:
            raise EngineError(f"no container {container[:12]}")
        if info.state == "created":
            await self._launch(container)
            info = self._info(container) or info
        if info.state == "running":
            self._processes.watch(container, info.pid)
        return info

    async def ended(self, container: str) -> None:
        seen = _look(self._root / container)
        if seen.pid:
            self._processes.watch(container, seen.pid)
            await self._processes.wait(container)

    async def wait(self, container: str) -> int:
        directory = self._root / container
        await self.ended(container)
        deadline = asyncio.get_running_loop().time() + EXIT_TIMEOUT
        while (code := _look(directory).exit_code) is None:
            if asyncio.get_running_loop().time() > deadline:
                return UNKNOWN_EXIT
            await asyncio.sleep(0.005)
        return code

    async def run(self, container: str, command: Sequence[str], timeout: float) -> Ran:
        directory = self._root / container
        stored, seen = _load(directory), _look(directory)
        if stored is None or not seen.pid:
            raise EngineError(f"container {container[:12]} does not run")
        enter = ["nsenter", f"--target={seen.pid}", "--net", "--mount", f"--wd={stored.directory}"]
        process = await asyncio.create_subprocess_exec(
            *enter, *stored.prefix, *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=_environment(stored), start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, SIGKILL)
                await process.wait()
        code = process.returncode or 0
        return Ran(code=code if code >= 0 else 128 - code, output=output.decode(errors="replace"))

    async def stop(self, container: str, signal: str, grace: float) -> None:
        seen = _look(self._root / container)
        if not seen.pid or not self._processes.watch(container, seen.pid):
            return
        try:
            gently = signal_number(signal)
        except ValueError:
            gently = SIGTERM
        for number, patience in ((gently, grace), (SIGKILL, KILL_TIMEOUT)):
            self._processes.send(container, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._processes.wait(container)
                return
        raise EngineError(f"process {seen.pid} of {container[:12]} does not end, not even by SIGKILL")

    async def remove(self, container: str) -> None:
        await self.stop(container, "SIGKILL", KILL_TIMEOUT)
        self._processes.forget(container)
        directory = self._root / container
        stored = _load(directory)
        if stored and (directory / "pid").exists():
            await self.wait(container)  # the shell still has a line to write
            await asyncio.to_thread(_kill_everything_in, stored.netns)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        if stored and stored.secrets:
            self._remove_secrets_place()

    async def list(self, label: str = TASK_LABEL) -> list[ContainerInfo]:
        if not self._root.is_dir():
            return []
        self._sweep()
        found = [
            info for path in sorted(self._root.iterdir()) if (info := self._info(path.name)) and label in info.labels
        ]
        for info in found:
            if info.state == "running":
                self._processes.watch(info.id, info.pid)
        return found

    async def events(self) -> AsyncIterator[str]:
        queue = self._processes.listen()
        try:
            while True:
                yield await queue.get()
        finally:
            self._processes.unlisten(queue)

    async def close(self) -> None:
        self._processes.close()

    async def _launch(self, container: str) -> None:
        directory = self._root / container
        stored = _load(directory)
        if stored is None:
            raise EngineError(f"no container {container[:12]}")
        program = shutil.which(stored.command[0])
        if program is None:
            raise EngineError(f"exec: {stored.command[0]!r}: executable file not found in $PATH")
        enter = ["nsenter", f"--net={stored.netns}"]
        if stored.files or stored.secrets:
            pairs = [word for target, source in stored.files.items() for word in (source, target)]
            confidential = [word for target, source in stored.secrets.items() for word in (source, target)]
            own = ["unshare", "--mount", "--propagation", "slave"]
            enter = [*enter, *own, "sh", "-c", WITH_FILES, "sh", *pairs, "--", *confidential, "--"]
            if any(target.startswith(SECRETS) for target in stored.secrets):
                self._make_secrets_place()
        environment = _environment(stored) | {"HIVEMESH_DIR": str(directory), "HIVEMESH_WD": stored.directory}
        with (directory / "log").open("ab") as output:
            # setsid forks and leaves, so that the shell belongs to nobody and ends with nobody.
            launcher = await asyncio.create_subprocess_exec(
                "setsid", "--fork", *enter, "sh", "-c", SHELL, "sh", *stored.prefix, program, *stored.command[1:],
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            )  # fmt: skip
            await launcher.wait()
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT
        while not (directory / "pid").exists():
            if (directory / "exit").exists() or asyncio.get_running_loop().time() > deadline:
                raise EngineError(_last_words(directory / "log"))
            await asyncio.sleep(0.002)

    async def logs(self, container: str, options: LogOptions) -> AsyncIterator[Output]:
        """Both streams are one file here, and nobody noted when a line was written: all lines count as standard output,
        those that are there already as of the last of them, later ones as of when they were seen.
        """
        path = self._root / container / "log"
        if not path.exists() or not options.stdout:
            return
        with path.open("rb") as file:
            lines = (await asyncio.to_thread(file.read)).splitlines(keepends=True)
            written = os.stat(path).st_mtime_ns
            if written / 1e9 >= options.since:
                for line in lines[len(lines) - options.tail :] if 0 <= options.tail < len(lines) else lines:
                    yield Output(STDOUT, written, line)
            while options.follow:
                ended = (self._root / container / "exit").exists()
                rest = await asyncio.to_thread(file.read)
                for line in rest.splitlines(keepends=True):
                    yield Output(STDOUT, time.time_ns(), line)
                if ended or not path.exists():
                    return
                await asyncio.sleep(LOOK_PERIOD)

    def _sweep(self) -> None:
        """What was left of a container when its creation or removal was interrupted."""
        for path in self._root.iterdir():
            if path.is_dir() and not (path / "container").exists():
                shutil.rmtree(path, ignore_errors=True)

    def _make_secrets_place(self) -> None:
        """Where a process mounts its own; the machine may well have none."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(SECRETS)
            (self._root / MADE).touch()

    def _remove_secrets_place(self) -> None:
        """Only what we made, and once no process has something mounted there: removing would take it away."""
        left = [s for path in self._root.iterdir() if (s := _load(path)) and s.secrets]
        if not left and (self._root / MADE).exists():
            with contextlib.suppress(OSError):
                os.rmdir(SECRETS)
            (self._root / MADE).unlink()

    def _info(self, container: str) -> ContainerInfo | None:
        directory = self._root / container
        stored = _load(directory)
        if stored is None:
            return None
        seen = _look(directory)
        started = (directory / "pid").exists()
        state = "running" if seen.pid else "exited" if started else "created"
        code = seen.exit_code if seen.exit_code is not None else UNKNOWN_EXIT if state == "exited" else 0
        return ContainerInfo(
            id=container, name=stored.name, labels=stored.labels, state=state, pid=seen.pid, exit_code=code
        )

    def _command_of(self, image: str) -> tuple[str, ...]:
        command = self._images.get(_short(image)) or self._images.get(_short(image).removeprefix("localhost/"))
        if command:
            return command
        if not shutil.which(image):
            known = ", ".join(sorted(self._images)) or "none"
            raise ImageNotFound(
                f"no command is configured for the image {image}, and no executable has that name (configured: {known})"
            )
        return (image,)


def _environment(stored: _Stored) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), **stored.environment}


def _short(image: str) -> str:
    """Without digest and `:latest`."""
    return image.partition("@")[0].removesuffix(":latest")


def _load(directory: Path) -> _Stored | None:
    try:
        return msgspec.msgpack.decode((directory / "container").read_bytes(), type=_Stored)
    except (OSError, msgspec.MsgspecError):
        return None


def _look(directory: Path) -> _Seen:
    """The live process, or the exit code, or neither."""
    try:
        code = int((directory / "exit").read_text())
    except (OSError, ValueError):
        code = None
    if code is not None:
        return _Seen(exit_code=code)
    try:
        written = (directory / "pid").read_text()
        pid = int(written.split()[0])
        now = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return _Seen()
    state, *_ = fields = now.rpartition(") ")[2].split()
    alive = state not in "ZX" and fields[START_TIME] == written.rpartition(") ")[2].split()[START_TIME]
    return _Seen(pid=pid if alive else 0)


def _kill_everything_in(netns: str) -> None:
    """Kill what the command left behind: nothing but its own children ever enters its sandbox."""
    try:
        inside = os.stat(netns)
    except OSError:
        return
    if os.path.samestat(inside, os.stat("/proc/self/ns/net")):
        return
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if os.path.samestat(inside, os.stat(f"/proc/{entry.name}/ns/net")):
                    os.kill(int(entry.name), SIGKILL)


def _last_words(path: Path) -> str:
    text = path.read_text(errors="replace").strip() if path.exists() else ""
    return text.splitlines()[-1] if text else "the command did not start and said nothing"
