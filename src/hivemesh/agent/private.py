"""Files that only their owner reads, and that are whole at any moment."""

import os
import threading
from pathlib import Path

from hivemesh.model.errors import Unavailable

_writing = threading.Lock()
"""Two threads may have the same file to write."""


def write_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file in one step, readable by its owner only; raises `OSError`.

    It is on disk when this returns, unless that is not asked for: then a loss of power can undo it. One who ends half
    way leaves a file that the next one writes over: nothing piles up.
    """
    fresh = path.with_name(f".{path.name}.new")
    with _writing:
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        if durable:
            _settle(path.parent)


def _settle(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refused(path: Path, error: OSError) -> Unavailable:
    """What to say when the disk takes nothing."""
    return Unavailable(
        f"cannot write {path}: {error.strerror or error}; nothing was changed: free some space there, or make the file "
        "system writable, and try again"
    )
