"""Settings under /proc/sys/net: each namespace has its own, shown to whoever is inside.

Keys are paths with slashes, `net/ipv4/conf/eth0/rp_filter`, since interface names may hold dots.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Mapping

from hivemesh.kernel.netns import call_inside, enter, in_thread

_OPTIONAL = ("net/bridge/", "net/ipv4/vs/")
"""Exist only while a module is loaded: without br_netfilter bridged packets meet no rules anyway, and that IPVS is
missing is told once, by itself."""


def _read(key: str) -> str | None:
    try:
        handle = os.open(f"/proc/sys/{key}", os.O_RDONLY | os.O_CLOEXEC)  # a third of what `open` costs
    except FileNotFoundError:
        return None
    try:
        return " ".join(os.read(handle, 1 << 16).decode().split())
    finally:
        os.close(handle)


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


def changed(wanted: Mapping[str, Mapping[str, str]]) -> tuple[list[str], float]:
    """The namespaces whose settings are not as wanted, and the seconds of a processor that the look took. One that was
    removed meanwhile is none of them.

    One thread goes through all: with hundreds of namespaces a thread for each would cost twice as much.
    """

    def look() -> tuple[list[str], float]:
        found, begun = [], time.thread_time()
        for namespace, settings in wanted.items():
            with contextlib.suppress(OSError):
                enter(namespace)
                if _differing(settings):
                    found.append(namespace)
        return found, time.thread_time() - begun

    return in_thread(look)


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
