"""Files that only their owner reads, and that are whole at any moment."""

import os
import tempfile
from pathlib import Path

from hivemesh.model.errors import Unavailable


def write_private(path: Path, data: bytes) -> None:
    """Replace a file in one step, readable by its owner only, and on disk when this returns."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def refused(path: Path, error: OSError) -> Unavailable:
    """What to say when the disk takes nothing."""
    return Unavailable(
        f"cannot write {path}: {error.strerror or error}; nothing was changed: free some space there, or make the file "
        "system writable, and try again"
    )
