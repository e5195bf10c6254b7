"""Network namespaces with names, as `ip netns` knows them: bind mounts under /run/netns.

A namespace appears under its name only once it is complete (`lo` up and marked), so one without a mark is never ours.
"""

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from hivemesh.kernel import nft, rtnl
from hivemesh.kernel.api import HOST
from hivemesh.kernel.sockets import NETNS_DIR
from hivemesh.model.errors import Conflict
from hivemesh.wire.rtnetlink import set_link

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000  # linux/mount.h
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)

R = TypeVar("R")

_reserved: set[str] = set()
"""Names whose place an empty file of ours holds: no left-overs."""


def _checked(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")


def _mount(source: str, target: str, flags: int) -> None:
    _checked(_libc.mount(source.encode(), target.encode(), b"none", flags, None), f"mount {target}")


def in_thread(work: Callable[[], R]) -> R:
    """Run in a thread that ends right after: it may change its namespace, ours must not."""
    done: list[R] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


HOST_PATH = "/proc/self/ns/net"
"""The process's own, whichever namespace a thread of it is in: `self` is the first thread."""


def path(name: str) -> str:
    """A file that stands for the namespace, for `open`, `setns` and container engines."""
    return f"{NETNS_DIR}/{name}" if name else HOST_PATH


def _is_namespace(name: str) -> bool:
    try:
        found = os.stat(path(name))
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_dev == os.stat("/proc/self/ns/net").st_dev


def exists(name: str) -> bool:
    """Whether a namespace is pinned under that name; a left-over empty file is none."""
    return _is_namespace(name)


def names() -> list[str]:
    """All named namespaces, ours or not."""
    try:
        return sorted(name for name in os.listdir(NETNS_DIR) if _is_namespace(name))
    except FileNotFoundError:
        return []


def leftovers() -> list[str]:
    """Names that stand for nothing: whoever made or removed the namespace ended half-way, or is just doing it."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in set(os.listdir(NETNS_DIR)) - _reserved:
            with contextlib.suppress(FileNotFoundError):
                look = os.stat(path(name))
                if stat.S_ISREG(look.st_mode) and not look.st_size and not _is_namespace(name):
                    found.append(name)
    return sorted(found)


def call_inside(name: str, work: Callable[[], R]) -> R:
    """What `work` returns, run by a thread inside the namespace; "" runs it here. Files stay as they are.

    Raises `FileNotFoundError` when there is no such namespace.
    """
    if name == HOST:
        return work()

    def inside() -> R:
        enter(name)
        return work()

    return in_thread(inside)


def enter(name: str) -> None:
    """The calling thread is in that namespace from now on: only for one that ends right after, see `in_thread`.

    Raises `FileNotFoundError` when there is no such namespace.
    """
    handle = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(handle, _CLONE_NEWNET), f"enter namespace {name}")
    finally:
        os.close(handle)


def mark_of(name: str) -> str:
    """The alias of `lo` inside; "" when there is none. Raises `FileNotFoundError` when there is no such namespace."""
    known = rtnl.held(name)
    if known is not None and known.identity == rtnl.identity(name):
        link = known.link("lo")
    else:
        # not kept open: that would keep alive a namespace that may not be ours
        visit = rtnl.Rtnl(name)
        try:
            link = visit.link("lo")
        finally:
            visit.close()
    return link.alias if link is not None else ""


def create(name: str, mark: str) -> None:
    """Make a namespace with `lo` up and marked. Raises `Conflict` when the name is taken."""
    if _is_namespace(name):
        raise Conflict(f"namespace {name} exists already: `ip netns delete {name}` removes it")

    def make() -> None:
        _checked(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
        # HOST here is the new namespace: a socket made in this thread lives in it
        inside = rtnl.Rtnl(HOST)
        try:
            for failure in inside.apply([set_link(1, "lo", up=True, alias=mark)]):
                raise OSError(failure.errno, str(failure))
            _pin("/proc/thread-self/ns/net", name)
            rtnl.keep(name, inside)
        except BaseException:
            inside.close()
            raise

    rtnl.forget(name)
    _share_directory()
    in_thread(make)


@contextlib.contextmanager
def reserved(name: str) -> Iterator[str]:
    """The path of a namespace that is still to come, there while this lasts: some engines look for it early.

    An empty file holds its place; whoever makes the namespace meanwhile mounts it there.
    """
    _share_directory()
    _reserved.add(name)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path(name), os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    try:
        yield path(name)
    finally:
        _reserved.discard(name)
        if not _is_namespace(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path(name))


def pin_again(name: str) -> bool:
    """Give a namespace its name back that lost it while we hold it open. False when we do not."""
    known = rtnl.held(name)
    if known is None or _is_namespace(name):
        return False
    handle = known.handle()
    try:
        _share_directory()
        _pin(f"/proc/self/fd/{handle}", name)
    finally:
        os.close(handle)
    return True


def _pin(source: str, name: str) -> None:
    target = path(name)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    try:
        _mount(source, target, _MS_BIND)
    except OSError:
        os.unlink(target)
        raise


def _share_directory() -> None:
    """What is mounted there must be seen by processes with a mount namespace of their own, and what is unmounted must
    vanish for them: as iproute2 does, the directory is a shared mount."""
    os.makedirs(NETNS_DIR, mode=0o755, exist_ok=True)
    if _libc.mount(b"", NETNS_DIR.encode(), b"none", _MS_SHARED | _MS_REC, None) == 0:
        return
    if ctypes.get_errno() != errno.EINVAL:  # EINVAL: not a mount point yet
        _checked(-1, f"share {NETNS_DIR}")
    _mount(NETNS_DIR, NETNS_DIR, _MS_BIND | _MS_REC)
    _mount("", NETNS_DIR, _MS_SHARED | _MS_REC)


def delete(name: str) -> None:
    """Take the name away and close what we hold open inside; it may be gone already.

    The namespace itself goes with its last process.
    """
    rtnl.forget(name)
    nft.forget(name)
    _libc.umount2(path(name).encode(), _MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path(name))
