"""Settings under /proc/sys/net: each namespace has its own, shown to whoever is inside.

Keys are paths with slashes, `net/ipv4/conf/eth0/rp_filter`, since interface names may hold dots.
"""

import errno
import os
from collections.abc import Iterable, Mapping

from hivemesh.kernel.netns import call_inside

_OPTIONAL = "net/bridge/"
"""Exists only while the module br_netfilter is loaded; without it bridged packets meet no rules anyway."""


def _read(key: str) -> str | None:
    try:
        with open(f"/proc/sys/{key}") as file:
            return " ".join(file.read().split())
    except FileNotFoundError:
        return None


def read(namespace: str, keys: Iterable[str]) -> dict[str, str | None]:
    """Each setting's value, blanks between several numbers made single; None where there is no such setting."""
    wanted = list(keys)
    if not wanted:
        return {}
    return call_inside(namespace, lambda: {key: _read(key) for key in wanted})


def differing(namespace: str, wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What is there instead of what is wanted."""
    actual = read(namespace, wanted)
    return {
        key: value
        for key, value in actual.items()
        if value != wanted[key] and not (value is None and key.startswith(_OPTIONAL))
    }


def write(namespace: str, settings: Mapping[str, str]) -> dict[str, OSError]:
    """Set them in order; returns what failed."""

    def write_all() -> dict[str, OSError]:
        failed = {}
        for key, value in settings.items():
            try:
                handle = os.open(f"/proc/sys/{key}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(handle, value.encode())
                finally:
                    os.close(handle)
            except OSError as error:
                failed[key] = OSError(error.errno or errno.EIO, error.strerror)
        return failed

    return call_inside(namespace, write_all) if settings else {}
