"""A node of a lab: a machine with Podman storage of its own and the real daemon."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hivemesh.engine.host import containers_conf, host_needs
from hivemesh.lab import http
from hivemesh.lab.image import IMAGE
from hivemesh.lab.machine import LabError, Machine, Process, kill
from hivemesh.lab.topology import CLIENT

DAEMON = "hivemeshd"
INSTALLED = str(Path(sys.executable).parent / DAEMON)
PARTS = {"daemon": DAEMON, "resolver": "hivemesh-resolver", "etcd": "etcd"}
"""Programs of ours on a node, each of which may be killed."""
REGISTRY = f"{CLIENT}:5000"
"""Where a registry may be, on the client host: its answers need no certificate."""
START_TIMEOUT = 20.0
"""Seconds until the daemon's socket must answer; it takes half a second on a quiet machine."""
START_GRACE = 2.0
"""Seconds in which a daemon that cannot be seen may still be on its way."""
CGROUPS = Path("/sys/fs/cgroup")


class Node(Machine):
    """The handle on one node; the daemon is found by its name among the machine's processes."""

    @property
    def socket(self) -> Path:
        """The node's Docker API, as the real machine reaches it."""
        return self.run / "docker.sock"

    @property
    def docker_host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def log(self) -> Path:
        """What the daemon has written, over all its lives."""
        return self.disk / "hivemeshd.log"

    def environment(self) -> dict[str, str]:
        settings = {
            "CONTAINERS_STORAGE_CONF": self.disk / "storage.conf",
            "CONTAINERS_CONF": self.disk / "containers.conf",
            "CONTAINERS_REGISTRIES_CONF": self.disk / "registries.conf",
        }
        return {**super().environment(), **{name: str(path) for name, path in settings.items() if path.exists()}}

    def prepare_engine(self, image_store: Path) -> None:
        """Podman's settings: storage of the node's own, the images of all labs to read, a registry without TLS."""
        self.disk.mkdir(parents=True, exist_ok=True)
        (self.disk / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self._storage}"\nrunroot = "/run/containers/storage"\n'
            f'[storage.options]\nadditionalimagestores = ["{image_store}"]\n'
        )
        (self.disk / "registries.conf").write_text(f'[[registry]]\nlocation = "{REGISTRY}"\ninsecure = true\n')
        containers_conf(host_needs(run=self.run), self.disk)  # as seen on the node, where no systemd runs

    def api(self, method: str, path: str, body: object = None, *, timeout: float = 60) -> Any:
        """One call of the node's Docker API: the decoded answer. Raises `http.Refused`, `LabError`."""
        try:
            return http.request(self.socket, method, path, body, timeout=timeout)
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._ask_for_stacks()
            raise LabError(f"{self.name}: the daemon does not answer ({error}); see {self.log}") from error

    def _ask_for_stacks(self) -> None:
        """What the daemon is stuck in goes to its log, if it has come so far that it knows the signal."""
        process = self.daemon()
        if process is None:
            return
        with contextlib.suppress(OSError):
            caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
            if int(caught, 16) >> (signal.SIGUSR1 - 1) & 1:
                os.kill(process.pid, signal.SIGUSR1)

    def start_daemon(
        self,
        engine: str,
        program: Path,
        *,
        balancer: str = "nftables",
        log_level: str = "info",
        options: Sequence[str] = (),
        command: Sequence[str] = (),
    ) -> None:
        """Start `hivemeshd`; `await_daemon` waits for it. Nothing happens when it runs.

        `command` is started in place of the installed one; it is found as the daemon if it goes by that name.
        """
        if self.daemon() is None:
            given = ["--engine", engine, "--balancer", balancer, "--log-level", log_level, *options]
            given += ["--data-dir", str(self.disk / "data")]
            if engine == "process":
                given += ["--process-image", f"{IMAGE.removesuffix(':latest')}={program}"]
            self.spawn([*(command or (INSTALLED,)), *given], self.log)

    def await_daemon(self) -> None:
        """Until its API answers. Raises `LabError` with its last words when it ends instead."""
        begun = time.monotonic()
        while True:
            try:
                http.request(self.socket, "GET", "/_ping", timeout=START_TIMEOUT)
                return
            except OSError:
                waited = time.monotonic() - begun
                if waited > START_TIMEOUT or (waited > START_GRACE and self.daemon() is None):
                    raise LabError(f"{self.name}: the daemon did not come up: {last_line(self.log)}") from None
                time.sleep(0.02)

    def daemon(self) -> Process | None:
        return next((process for process in self.processes() if process.runs(DAEMON)), None)

    def stop_daemon(self) -> None:
        """As a service manager would: SIGTERM, and SIGKILL after a grace period."""
        self._end(signal.SIGTERM)

    def kill_daemon(self) -> None:
        """As a crash would: SIGKILL. Tasks and their network carry on."""
        self._end(signal.SIGKILL)

    def kill_part(self, part: str) -> bool:
        """As a crash would, one of `PARTS`; the daemon starts the others again. False when it does not run."""
        found = [process for process in self.processes() if process.runs(PARTS[part])]
        kill(found, signal.SIGKILL)
        return bool(found)

    def _end(self, signal_number: int) -> None:
        process = self.daemon()
        if process is None:
            return
        try:
            kill([process], signal_number)
        except LabError:
            kill([process], signal.SIGKILL)

    @property
    def _storage(self) -> Path:
        return self.disk / "containers"

    def remove_cgroups(self) -> None:
        """Drop what killed containers left: empty groups, named after ids that this storage knows."""
        containers = self._storage / "overlay-containers"
        if not containers.is_dir():
            return
        ids = {entry.name for entry in containers.iterdir() if entry.is_dir()}
        for parent in (*CGROUPS.glob("*/libpod_parent"), CGROUPS / "libpod_parent"):
            for group in parent.glob("libpod-*"):
                if group.name.rpartition("-")[2] in ids:
                    _remove_group(group)


def _remove_group(group: Path) -> None:
    for child in group.iterdir():
        if child.is_dir():
            _remove_group(child)
    group.rmdir()


def last_line(path: Path) -> str:
    try:
        lines: Sequence[str] = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = ()
    return lines[-1] if lines else f"it said nothing (log: {path})"
