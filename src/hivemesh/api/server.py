"""Serving the API on a unix socket."""

import asyncio
import grp
import os
import socket
from pathlib import Path

from aiohttp import web

from hivemesh.api.app import create_app
from hivemesh.api.local import LocalNode
from hivemesh.model.errors import Conflict, Unavailable

MODE = 0o660
"""Docker's: the owner and the group may speak to the engine, which is as good as being root."""

GROUPS = ("hivemesh", "docker")
"""The first of these groups that exists owns the socket, as `docker` does with Docker's."""

PATIENCE = 2.0
"""Seconds that requests under way get when the daemon stops; event streams never end by themselves."""


class ApiServer:
    """Listens while `run` runs, and removes its socket at the end."""

    def __init__(self, local: LocalNode, path: Path) -> None:
        self._local = local
        self._path = path

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until cancelled; `ready` is set once clients can connect.

        Raises `Conflict` when another process answers on the socket, `Unavailable` when it cannot be made.
        """
        # With handler_cancellation a client that hangs up ends its streams; what must not stop half-way shields itself.
        runner = web.AppRunner(
            create_app(self._local), handler_cancellation=True, access_log=None, shutdown_timeout=PATIENCE
        )
        await runner.setup()
        listener = _listen(self._path)
        inode = self._path.stat().st_ino
        try:
            await web.SockSite(runner, listener).start()
            if ready is not None:
                ready.set()
            await asyncio.Event().wait()
        finally:
            if self._path.exists() and self._path.stat().st_ino == inode:
                self._path.unlink()
            await runner.cleanup()


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            _refuse_if_alive(path)
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o777 & ~MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {path}: {error.strerror or error}; choose another with --socket"
        ) from error
    for name in GROUPS:
        try:
            os.chown(path, -1, grp.getgrnam(name).gr_gid)
            break
        except (KeyError, PermissionError):
            continue
    listener.setblocking(False)
    return listener


def _refuse_if_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise Conflict(f"another daemon already answers on {path}: stop it first, or choose another with --socket")
