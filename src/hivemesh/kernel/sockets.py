"""Sockets that live in a namespace of our choice, and the register that tells our changes from others'."""

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from hivemesh.wire.netlink import DONE, DUMP, ERROR, error_of, pack, replies

NETNS_DIR = "/run/netns"
"""Where `ip netns` pins namespaces."""

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11  # linux/socket.h, linux/netlink.h
_libc = ctypes.CDLL(None, use_errno=True)

R = TypeVar("R")

own_ports: set[int] = set()
"""Netlink port ids of sockets that change things for us: an event that carries one of them is our own echo.

Port ids are unique per namespace only, so another process may rarely have the same one elsewhere; what is missed then
is found by the slow timer.
"""


def inside(path: str, work: Callable[[], R]) -> R:
    """What `work` returns, run by a thread inside the network namespace that the file at `path` stands for.

    A socket stays in the namespace it was made in, whoever uses it. The thread ends right after, since it alone may
    change its namespace. Raises `FileNotFoundError` when there is no such namespace.
    """
    made: list[R] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(handle, _CLONE_NEWNET):
                    code = ctypes.get_errno()
                    if code == errno.EINVAL:  # an empty file: its namespace is just being pinned or removed
                        code = errno.ENOENT
                    raise OSError(code, f"cannot enter namespace {os.path.basename(path)}")
            finally:
                os.close(handle)
            made.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=f"enter {path}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def open_netlink(namespace: str, protocol: int) -> socket.socket:
    """A bound netlink socket inside `namespace` ("" is our own), registered in `own_ports`.

    Raises `FileNotFoundError` when there is no such namespace.
    """

    def make() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)

    return _bound(inside(f"{NETNS_DIR}/{namespace}", make) if namespace else make())


def _bound(sock: socket.socket) -> socket.socket:
    sock.bind((0, 0))
    sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # errors come without a copy of our message
    sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)  # and with the kernel's words
    own_ports.add(sock.getsockname()[0])
    return sock


def close_netlink(sock: socket.socket) -> None:
    """Close a socket of `open_netlink` and forget its port id."""
    own_ports.discard(sock.getsockname()[0])
    sock.close()


def dumped(sock: socket.socket, kind: int, request: bytes) -> Iterator[bytes]:
    """The bodies of all that the kernel lists for `request`. Raises `OSError` with the kernel's errno and words."""
    sock.send(pack(kind, DUMP, 1, request))
    while True:
        for reply in replies(sock.recv(1 << 20)):
            if reply.kind == DONE:
                return
            if reply.kind == ERROR:
                code, words = error_of(reply)
                raise OSError(code, words or os.strerror(code))
            yield reply.body
