"""Serving the API on a unix socket."""

import asyncio
import contextlib
import grp
import os
import socket
from pathlib import Path

from aiohttp import web

from hivemesh.api.app import create_app
from hivemesh.api.local import LocalNode
from hivemesh.model.errors import Conflict, Invalid, Unavailable

MODE = 0o660
"""Docker's: the owner and the group may speak to the engine, which is as good as being root."""

GROUPS = ("hivemesh", "docker")
"""Unless one is named, the first of these groups that exists owns the socket, as `docker` does with Docker's."""

LONGEST_LINE = 1 << 20
"""Bytes of a request's first line, and of each of its headers: Go's servers take as much, and filters with many labels
or the credentials of some registries are longer than the 8 kB that are usual."""

PATIENCE = 2.0
"""Seconds that requests under way get when the daemon stops; event streams never end by themselves."""


class ApiServer:
    """Listens while `run` runs, and removes its socket at the end."""

    def __init__(self, local: LocalNode, path: Path, group: str = "") -> None:
        """`group`: name or number; empty: the first of `GROUPS`."""
        self._local = local
        self._path = path
        self._group = group

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until cancelled; `ready` is set once clients can connect.

        Raises `Conflict` when another process answers on the socket, `Unavailable` when it cannot be made, `Invalid`
        when there is no such group.
        """
        # With handler_cancellation a client that hangs up ends its streams; what must not stop half-way shields itself.
        group = _group_id(self._group)
        runner = web.AppRunner(
            create_app(self._local), handler_cancellation=True, access_log=None, shutdown_timeout=PATIENCE,
            max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE,
        )  # fmt: skip
        await runner.setup()
        listener = _listen(self._path, group)
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


def _listen(path: Path, group: int | None) -> socket.socket:
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
        if group is not None:
            os.chown(path, -1, group)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {path}: {error.strerror or error}; choose another with --socket"
        ) from error
    listener.setblocking(False)
    return listener


def _group_id(name: str) -> int | None:
    """Who may speak to the daemon besides its owner; None: nobody."""
    for known in (name,) if name else GROUPS:
        if known.isascii() and known.isdigit():
            return int(known)
        with contextlib.suppress(KeyError):
            return grp.getgrnam(known).gr_gid
    if name:
        raise Invalid(f"there is no group {name!r}: make it with `groupadd {name}`, or choose another with --group")
    return None


def _refuse_if_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise Conflict(f"another daemon already answers on {path}: stop it first, or choose another with --socket")
