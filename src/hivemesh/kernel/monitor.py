"""What somebody else changes in our namespaces, as netlink tells it.

What fights us here:
- Our own changes come back as events. Most carry the port id of the socket that asked and are dropped unseen. Who asked
  for changes of links, IPv6 addresses and forwarding entries the kernel does not tell: those are held against what we
  believe (`Beliefs`), and only a contradiction counts.
- Events can be lost (ENOBUFS): then everything in that namespace is in doubt.
- A namespace that loses its name sends no event: the directory of names is watched too.

Settings under /proc/sys have no events at all; a slow look finds those.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemesh.kernel.api import HOST
from hivemesh.kernel.rtnl import identity
from hivemesh.kernel.sockets import NETNS_DIR, close_netlink, open_netlink, own_ports
from hivemesh.wire import rtnetlink as wire
from hivemesh.wire.netlink import replies

LINK, ADDRESS, ROUTE, RULE, NEIGHBOR, FDB, NFT = "link", "address", "route", "rule", "neighbor", "fdb", "nft"
NAMESPACE, PORT, LOST = "namespace", "port", "lost"

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE = 33
_BUFFER = 8 << 20
"""A limit, not an allocation: room for the events of some thousand peers that come at once."""
_ROUTE_GROUPS = (1, 3, 5, 7, 8, 9, 11, 19)  # RTNLGRP_LINK, NEIGH, and per family IFADDR, ROUTE, RULE
_NFT_GROUP = 7  # NFNLGRP_NFTABLES
_TABLE = b"hivemesh"
_READ_AT_ONCE = 256  # datagrams; then others have their turn on the loop
_SETTLE = 0.005  # seconds; whoever changes one thing often changes more
_IN_DELETE, _IN_MOVED_FROM = 0x200, 0x40  # linux/inotify.h
_libc = ctypes.CDLL(None, use_errno=True)

Seen = wire.LinkSeen | wire.AddressSeen | wire.RouteSeen | wire.RuleSeen | wire.NeighborSeen | wire.FdbSeen


@dataclass(frozen=True, slots=True)
class Change:
    """One event. `value` is what it was about, as the kernel showed it; None: see for yourself."""

    namespace: str
    kind: str
    removed: bool = False
    value: Seen | None = None


class Beliefs(Protocol):
    """Who knows what should be there: `dataplane.apply.Applier`."""

    def contradicted(self, changes: Sequence[Change]) -> set[str]:
        """The namespaces whose plans must be applied again. Called in a thread."""
        ...


class Monitor:
    """Yields the names of namespaces that somebody else touched, several changes as one.

    With `Beliefs` it yields those whose plan is contradicted: the far end of a veth counts for the namespace of its
    near end. The host is also named when its own links and addresses change, which are not ours.
    `add`, `remove` and the iteration belong to the event loop's thread. The end of the iteration closes everything.
    """

    def __init__(self, beliefs: Beliefs | None = None) -> None:
        self._beliefs = beliefs
        self._sockets: dict[str, tuple[tuple[int, int], socket.socket, socket.socket]] = {}
        self._names = -1  # inotify handle
        self._news: list[tuple[str, str, bytes]] = []  # namespace, kind or "", datagram
        self._wake = asyncio.Event()

    def add(self, namespace: str) -> None:
        """Watch a namespace; again: only if the name stands for another one now.

        Raises `FileNotFoundError` when there is no such namespace.
        """
        current = identity(namespace)
        known = self._sockets.get(namespace)
        if known is not None and known[0] == current:
            return
        self.remove(namespace)
        if namespace != HOST:
            self._watch_names()
        route = _subscribed(namespace, _NETLINK_ROUTE, _ROUTE_GROUPS)
        try:
            rules = _subscribed(namespace, _NETLINK_NETFILTER, (_NFT_GROUP,))
        except BaseException:
            close_netlink(route)
            raise
        self._sockets[namespace] = current, route, rules
        loop = asyncio.get_running_loop()
        loop.add_reader(route.fileno(), self._read, namespace, route, "")
        loop.add_reader(rules.fileno(), self._read, namespace, rules, NFT)

    def remove(self, namespace: str) -> None:
        """Watch it no more; do this before the namespace is deleted, which our sockets would keep alive."""
        known = self._sockets.pop(namespace, None)
        if known is not None:
            for sock in known[1:]:
                asyncio.get_running_loop().remove_reader(sock.fileno())
                close_netlink(sock)

    def close(self) -> None:
        """Watch nothing."""
        for namespace in list(self._sockets):
            self.remove(namespace)
        if self._names >= 0:
            asyncio.get_running_loop().remove_reader(self._names)
            os.close(self._names)
            self._names = -1

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(_SETTLE)
                self._wake.clear()
                news, self._news = self._news, []
                for namespace in sorted(await asyncio.to_thread(self._judge, news)):
                    if namespace in self._sockets:
                        yield namespace
        finally:
            self.close()

    # --- reading, on the loop

    def _note(self, namespace: str, kind: str, data: bytes = b"") -> None:
        self._news.append((namespace, kind, data))
        self._wake.set()

    def _read(self, namespace: str, sock: socket.socket, kind: str) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                data = sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._note(namespace, LOST)
                continue
            sender = struct.unpack_from("=I", data, 12)[0]
            if sender in own_ports or (kind == NFT and _TABLE not in data):
                continue
            self._note(namespace, kind, data)

    def _watch_names(self) -> None:
        if self._names >= 0:
            return
        handle = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if handle < 0:
            raise OSError(ctypes.get_errno(), "cannot watch the directory of namespaces")
        if _libc.inotify_add_watch(handle, NETNS_DIR.encode(), _IN_DELETE | _IN_MOVED_FROM) < 0:
            code = ctypes.get_errno()
            os.close(handle)
            raise OSError(code, f"cannot watch {NETNS_DIR}")
        self._names = handle
        asyncio.get_running_loop().add_reader(handle, self._read_names)

    def _read_names(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._names, 1 << 16)
            position = 0
            while position < len(data):
                length = struct.unpack_from("=I", data, position + 12)[0]
                name = data[position + 16 : position + 16 + length].rstrip(b"\0").decode()
                if name in self._sockets:
                    self._note(name, NAMESPACE)
                position += 16 + length

    # --- judging, in a thread

    def _judge(self, news: list[tuple[str, str, bytes]]) -> set[str]:
        changes: list[Change] = []
        for namespace, kind, data in news:
            if kind:
                changes.append(Change(namespace, kind))
            else:
                changes += _parse(namespace, data)
        if self._beliefs is None:
            return {change.namespace for change in changes}
        return self._beliefs.contradicted(changes)


def _subscribed(namespace: str, protocol: int, groups: Sequence[int]) -> socket.socket:
    sock = open_netlink(namespace, protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    for group in groups:
        sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    return sock


def _parse(namespace: str, data: bytes) -> list[Change]:
    found = []
    for reply in replies(data):
        kind, body = reply.kind, reply.body
        if kind in (wire.NEWLINK, wire.DELLINK):
            # a bridge tells of its ports in a family of its own
            what = LINK if body[0] == wire.AF_UNSPEC else PORT
            found.append(Change(namespace, what, kind == wire.DELLINK, wire.parse_link(body)))
        elif kind in (wire.NEWADDR, wire.DELADDR):
            found.append(Change(namespace, ADDRESS, kind == wire.DELADDR, wire.parse_address(body)))
        elif kind in (wire.NEWROUTE, wire.DELROUTE):
            found.append(Change(namespace, ROUTE, kind == wire.DELROUTE, wire.parse_route(body)))
        elif kind in (wire.NEWRULE, wire.DELRULE):
            found.append(Change(namespace, RULE, kind == wire.DELRULE, wire.parse_rule(body)))
        elif kind in (wire.NEWNEIGH, wire.DELNEIGH):
            removed = kind == wire.DELNEIGH
            if body[0] != wire.AF_BRIDGE:
                found.append(Change(namespace, NEIGHBOR, removed, wire.parse_neighbor(body)))
            elif (entry := wire.parse_fdb(body)) is not None:
                found.append(Change(namespace, FDB, removed, entry))
    return found
