"""Podman's API service, started when somebody needs it and gone again when nobody does.

What stays true
- An idle node has no resident Podman: the service leaves by itself after `IDLE` seconds without a connection.
- `ready()` may be called by many at once: one of them starts the service, the others wait for it.
- A service that was killed is started again by the next call; one left by an earlier daemon is used as it is.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from hivemesh.engine.host import CONF, containers_conf, host_needs
from hivemesh.model.errors import Unavailable

log = logging.getLogger("hivemesh.engine")

NOT_INSTALLED = "podman is not installed: install it, or choose the engine `process`"
IDLE = 15
"""Seconds without a connection after which the service ends; starting it again takes 0.04."""
START_TIMEOUT = 20.0
"""Seconds; it takes 0.04 on a quiet machine, more when the storage must be repaired after a crash."""


class PodmanService:
    """Owns the process behind `socket`. The environment's CONTAINERS_CONF and CONTAINERS_STORAGE_CONF pass through."""

    def __init__(self, run_dir: Path, *, command: str = "podman", idle: int = IDLE) -> None:
        self.socket = run_dir / "podman.sock"
        self._run_dir = run_dir
        self._command = command
        self._idle = idle
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._environment: dict[str, str] | None = None

    @property
    def pid(self) -> int | None:
        """Of the service we started, while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def ready(self) -> Path:
        """The socket, answering. Raises `Unavailable` in words that say what to do."""
        if await self._answers():
            return self.socket
        async with self._lock:
            if not await self._answers():
                await self._start()
        return self.socket

    async def version(self) -> str:
        """Of Podman itself, asked without waking the service. Raises `Unavailable`."""
        try:
            asked = await asyncio.create_subprocess_exec(self._command, "--version", stdout=PIPE, stderr=DEVNULL)
        except FileNotFoundError:
            raise Unavailable(NOT_INSTALLED) from None
        answer, _ = await asked.communicate()
        return answer.decode().strip().rpartition(" ")[2]

    async def close(self) -> None:
        """End the service we started; containers carry on."""
        process = self._process
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 2)
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return False
        writer.close()
        return True

    async def _start(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        if self._process and self._process.returncode is None:
            # Alive but deaf: it is on its way out, or stuck. Its successor needs the socket's name.
            await self.close()
        if self._environment is None:
            self._environment = self._prepare()
        self.socket.unlink(missing_ok=True)
        errors = self._run_dir / "podman-service.log"
        with errors.open("wb") as stderr:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    self._command, "--log-level", "error", "system", "service", "--time", str(self._idle), f"unix://{self.socket}",
                    stdin=DEVNULL, stdout=DEVNULL, stderr=stderr, env=self._environment, start_new_session=True,
                )  # fmt: skip
            except FileNotFoundError:
                raise Unavailable(NOT_INSTALLED) from None
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT
        while not await self._answers():
            if self._process.returncode is not None:
                raise Unavailable(f"podman's service does not start: {_last_words(errors)}")
            if asyncio.get_running_loop().time() > deadline:
                await self.close()
                raise Unavailable(f"podman's service does not answer within {START_TIMEOUT:g} s: {_last_words(errors)}")
            await asyncio.sleep(0.005)
        log.debug("podman's service runs as process %d", self._process.pid)

    def _prepare(self) -> dict[str, str]:
        environment = dict(os.environ)
        needs = host_needs()
        conf = containers_conf(needs, self._run_dir)
        if conf:
            environment[CONF] = str(conf)
            log.info("%s (%s)", needs.why, conf)
        return environment


def _last_words(path: Path) -> str:
    text = path.read_text(errors="replace").strip()
    if not text:
        return f"it said nothing; try `podman info` (log: {path})"
    last = text.splitlines()[-1]
    quoted = re.search(r'msg=("(?:[^"\\]|\\.)*")', last)  # its log lines: time="…" level=error msg="…"
    return str(json.loads(quoted[1])) if quoted else last
