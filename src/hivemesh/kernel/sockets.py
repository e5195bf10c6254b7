"""Netlink sockets that live in a namespace of our choice, and the register that tells our changes from others'."""

import ctypes
import errno
import os
import socket
import threading

NETNS_DIR = "/run/netns"
"""Where `ip netns` pins namespaces."""

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11  # linux/socket.h, linux/netlink.h
_libc = ctypes.CDLL(None, use_errno=True)

own_ports: set[int] = set()
"""Netlink port ids of sockets that change things for us: an event that carries one of them is our own echo.

Port ids are unique per namespace only, so another process may rarely have the same one elsewhere; what is missed then
is found by the slow timer.
"""


def open_netlink(namespace: str, protocol: int) -> socket.socket:
    """A bound netlink socket inside `namespace` ("" is our own), registered in `own_ports`.

    The socket stays in its namespace whoever uses it. Made by a thread of its own, since only a thread that ends right
    after may change its namespace. Raises `FileNotFoundError` when there is no such namespace.
    """
    if not namespace:
        return _bound(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol))
    made: list[socket.socket] = []
    failed: list[BaseException] = []

    def make() -> None:
        try:
            handle = os.open(f"{NETNS_DIR}/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(handle, _CLONE_NEWNET):
                    code = ctypes.get_errno()
                    if code == errno.EINVAL:  # an empty file: its namespace is just being pinned or removed
                        code = errno.ENOENT
                    raise OSError(code, f"cannot enter namespace {namespace}")
            finally:
                os.close(handle)
            made.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=make, name=f"enter {namespace}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return _bound(made[0])


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
