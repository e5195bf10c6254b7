"""A daemon that ends, as by SIGKILL, just before the n-th thing it changes: in its store, on disk, in the kernel, at
the engine.

It counts from the moment on when a file CRASH_AT with a number was written, and writes what it counts to CRASH_AT.log.
"""

import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from hivemesh.cli.daemon import main as daemon
from hivemesh.daemon import founding, manager, node
from hivemesh.dataplane import apply
from hivemesh.engine.process import ProcessEngine
from hivemesh.kernel.faults import Faults
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.pki.seal import Seal
from hivemesh.store.api import Store
from hivemesh.store.faults import Told
from hivemesh.store.sealed import SealedStore

ORDER = os.environ["CRASH_AT"]
PLACES = tuple(os.environ["CRASH_PLACES"].split(":"))
"""Directories in which every change of a file counts."""
FILES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "shutil.rmtree": 0, "os.link": 1, "open": 0}
"""Audit events, and which of their arguments is the path that changes."""
FALLIBLE = threading.local()


class Doom:
    """Counts; one for the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._ordered = 0

    def __call__(self, what: str) -> None:
        """Something changes now."""
        with self._lock:
            FALLIBLE.inside = True
            try:
                with open(ORDER) as order:
                    at, ordered = int(order.read() or 0), os.fstat(order.fileno()).st_mtime_ns
            except FileNotFoundError:
                return
            finally:
                FALLIBLE.inside = False
            if ordered != self._ordered:
                self._count, self._ordered = 0, ordered
            self._count += 1
            FALLIBLE.inside = True
            with open(f"{ORDER}.log", "a") as log:
                log.write(f"{self._count} {what}\n")
            FALLIBLE.inside = False
            if self._count == at:
                os.kill(os.getpid(), signal.SIGKILL)


doom = Doom()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    place = FILES.get(event)
    if place is None or getattr(FALLIBLE, "inside", False):
        return
    path = os.fspath(arguments[place]) if isinstance(arguments[place], str | os.PathLike) else ""
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    if isinstance(path, str) and path.startswith(PLACES):
        doom(f"{event} {path}")


class _Told(SealedStore):
    def __init__(self, inner: Store, seal: Seal) -> None:
        super().__init__(Told(inner, doom), seal)


def _linux(hooks: SocketHooks | None = None) -> Faults:
    return Faults(hooks, before=doom)


def _around(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(method)
    async def told(*arguments: Any, **more: Any) -> Any:
        doom(f"engine {method.__name__}")
        try:
            return await method(*arguments, **more)
        finally:
            doom(f"engine {method.__name__} done")

    return told


def main() -> None:
    apply.Linux = node.Linux = _linux  # type: ignore[assignment,attr-defined]
    manager.SealedStore = founding.SealedStore = _Told  # type: ignore[attr-defined]
    for name in ("create", "start", "stop", "remove"):
        setattr(ProcessEngine, name, _around(getattr(ProcessEngine, name)))
    sys.addaudithook(_audit)
    daemon()
