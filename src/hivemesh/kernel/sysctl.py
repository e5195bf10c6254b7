"""Settings under /proc/sys/net: each namespace has its own, shown to whoever is inside.

Keys are paths with slashes, `net/ipv4/conf/eth0/rp_filter`, since interface names may hold dots.
"""

import errno
import os
from collections.abc import Iterable, Mapping

from hivemesh.kernel.netns import call_inside

_OPTIONAL = ("net/bridge/", "net/ipv4/vs/")
"""Exist only while a module is loaded: without br_netfilter bridged packets meet no rules anyway, and that IPVS is
missing is told once, by itself."""


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


def _differing(wanted: Mapping[str, str]) -> dict[str, str | None]:
    found = {}
    for key, value in wanted.items():
        actual = _read(key)
        if actual != value and not (actual is None and key.startswith(_OPTIONAL)):
            found[key] = actual
    return found


def differing(namespace: str, wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What is there instead of what is wanted."""
    return call_inside(namespace, lambda: _differing(wanted)) if wanted else {}


def _write(key: str, value: str) -> None:
    handle = os.open(f"/proc/sys/{key}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, value.encode())
    finally:
        os.close(handle)


def ensure(namespace: str, wanted: Mapping[str, str]) -> tuple[dict[str, str | None], dict[str, OSError]]:
    """Write what differs, in order. Returns what was there instead, and what could not be written."""

    def work() -> tuple[dict[str, str | None], dict[str, OSError]]:
        found, failed = _differing(wanted), {}
        for key in found:
            try:
                _write(key, wanted[key])
            except OSError as error:
                failed[key] = OSError(error.errno or errno.EIO, error.strerror)
        return found, failed

    return call_inside(namespace, work) if wanted else ({}, {})
