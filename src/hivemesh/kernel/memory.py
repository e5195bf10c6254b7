"""A directory in memory: a file system of its own whose files never reach a disk, not even as swap where the kernel can
promise that (6.4).
"""

import contextlib
import ctypes
import errno
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2
FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
MODE = "mode=0700"


def mount(path: Path) -> None:
    """Mount one at `path`, for its owner only, unless there is one. Raises `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.path.ismount(path):
        return
    for options in (f"{MODE},noswap", MODE):
        if _libc.mount(b"hivemesh", os.fsencode(path), b"tmpfs", FLAGS, options.encode()) == 0:
            return
        code = ctypes.get_errno()
        if code != errno.EINVAL:  # so an older kernel speaks of an option it does not know
            break
    raise OSError(code, f"cannot mount a tmpfs: {os.strerror(code)}", str(path))


def unmount(path: Path) -> None:
    """Drop it and the directory; a file that is in use elsewhere lives until it is not. Already gone is fine."""
    while os.path.ismount(path):
        if _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot unmount: {os.strerror(code)}", str(path))
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
