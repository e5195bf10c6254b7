"""Keeping this process's memory, with keys in it, out of core dumps and from debuggers without privilege."""

import ctypes

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep_out_of_cores() -> None:
    """Of this process only: a limit on the size of core files would be inherited by all containers."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
