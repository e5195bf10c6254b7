"""Questions that are not about the swarm: asked of the name servers of the node, or of the sandbox's own.

A question is asked once, however many wait for it; its answer is kept for as long as it says, for everyone who asks
the same servers. Servers are tried in their order, those that were silent a moment ago last.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from hivemesh.dns.cache import LIMIT, Cache
from hivemesh.dns.hostconf import RESOLV_CONF, read_host_conf
from hivemesh.dns.upstream import PATIENCE, Server, Unanswered
from hivemesh.log import SparingLog
from hivemesh.model.addr import Address
from hivemesh.wire.dnsanswer import (
    REFUSED,
    SERVFAIL,
    Asked,
    code_of,
    fitted,
    read_query,
    read_records,
)
from hivemesh.wire.resolver import RESOLVER_ADDRESS, Sandbox

MAX_SERVERS = 3
"""As the C library and Docker have it."""
LOOK_EVERY = 1.0
"""Seconds between looks at the node's file."""
MAX_ASKING = 16_384
"""Questions that may wait at once. Never met while servers answer; when none does, memory stays bounded."""
MAX_ASKING_EACH = 4_096
"""The same for one sandbox, so that it leaves room for the others."""

log = logging.getLogger("hivemesh.resolver")


class _Upstreams:
    """Servers asked in order. `tag` begins the key of each of their answers; with another tag these are forgotten."""

    __slots__ = ("servers", "tag")
    _made = 0

    def __init__(self) -> None:
        self.replace(())

    def replace(self, servers: Iterable[Server]) -> None:
        _Upstreams._made += 1
        self.tag = _Upstreams._made.to_bytes(6)
        self.servers = tuple(servers)

    def in_turn(self) -> list[Server]:
        return sorted(self.servers, key=lambda server: server.avoided)


class _Found(NamedTuple):
    """A server's answer; `shared` is its form for those whose query differs in writing."""

    query: bytes
    answer: bytes
    shared: bytes


class Forwarder:
    """Passes questions on. Nothing is shared with the node's names: these are looked up before."""

    def __init__(
        self,
        *,
        host_conf: Path = RESOLV_CONF,
        port: int = 53,
        patience: float = PATIENCE,
        memory: int = LIMIT,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` counts seconds; `port` is where servers listen; `memory` is in bytes."""
        self._host_conf = host_conf
        self._port = port
        self._patience = patience
        self._now = now
        self._cache = Cache(memory, now)
        self._log = SparingLog(log)
        self._node = _Upstreams()
        self._nobody = _Upstreams()
        self._known: dict[str, tuple[Sandbox, _Upstreams]] = {}
        self._servers: WeakSet[Server] = WeakSet()
        self._flights: dict[tuple[bool, int, bytes], asyncio.Task[_Found | None]] = {}
        self._asking: dict[str, int] = {}
        self._asking_all = 0
        self._look_at = 0.0
        self._seen: tuple[int, ...] | None = None
        self._look()

    def cached(self, query: bytes, sandbox: Sandbox, *, tcp: bool = False) -> bytes | None:
        """The answer, if there is one that still holds; else `ask` finds one. Never waits."""
        now = self._now()
        if now >= self._look_at:
            self._look()
        known = self._known.get(sandbox.id)
        upstreams = known[1] if known is not None and known[0] is sandbox else self._upstreams(sandbox)
        if not tcp:
            ready = self._cache.ready.get(upstreams.tag + query[2:])
            if ready is not None and now < ready[1]:
                return query[:2] + ready[0]
        asked = read_query(query)
        return None if asked is None else self._kept(query, asked, upstreams, tcp=tcp)

    async def ask(self, query: bytes, *, tcp: bool, sandbox: Sandbox) -> bytes | None:
        """The answer of the first server that has one, with the query's id and its question as it is written there.

        None when the question cannot be passed on or nobody answered: SERVFAIL.
        """
        if self._now() >= self._look_at:
            self._look()
        upstreams = self._upstreams(sandbox)
        asked = read_query(query)
        if asked is None or not upstreams.servers:
            return None
        kept = self._kept(query, asked, upstreams, tcp=tcp)
        if kept is not None:
            return kept
        key = upstreams.tag + asked.key
        if self._cache.failed(key):
            return None
        asking = self._asking.get(sandbox.id, 0)
        if asking >= MAX_ASKING_EACH or self._asking_all >= MAX_ASKING:
            self._log.warning(
                "full", "too many questions wait for other name servers: one of %s is refused", sandbox.id
            )
            return None
        self._asking[sandbox.id] = asking + 1
        self._asking_all += 1
        try:
            found = await self._shared(key, query, asked, tcp, upstreams)
        finally:
            self._asking_all -= 1
            left = self._asking[sandbox.id] - 1
            if left:
                self._asking[sandbox.id] = left
            else:
                del self._asking[sandbox.id]
        if found is None:
            return None
        same = query[2:] == found.query[2:]
        return fitted(found.answer if same else found.shared, query, asked, tcp=tcp)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone, or its settings: close what is open in its namespace."""
        known = self._known.pop(sandbox_id, None)
        if known is not None and known[1] not in (self._node, self._nobody):
            for server in known[1].servers:
                server.close()

    async def close(self) -> None:
        """End everything; who still waits is told that nobody answered."""
        for server in list(self._servers):
            server.close()
        await asyncio.gather(*self._flights.values())

    def _kept(self, query: bytes, asked: Asked, upstreams: _Upstreams, *, tcp: bool) -> bytes | None:
        """The answer that is kept, made ready for the next of the same writing."""
        if not asked.common:
            return None
        found = self._cache.find(upstreams.tag + asked.key)
        if found is None:
            return None
        answer = fitted(found[0], query, asked, tcp=tcp)
        if asked.bare and not tcp:
            self._cache.prepare(upstreams.tag + query[2:], answer[2:], found[1])
        return answer

    async def _shared(self, key: bytes, query: bytes, asked: Asked, tcp: bool, upstreams: _Upstreams) -> _Found | None:
        """Ask, or wait with those who ask the same already."""
        name = (tcp, asked.limit, key)
        flight = self._flights.get(name)
        if flight is None:
            flight = asyncio.create_task(self._find(key, query, asked, tcp, upstreams.in_turn()))
            self._flights[name] = flight
            flight.add_done_callback(lambda _: self._flights.pop(name))
        return await asyncio.shield(flight)  # who gives up does not take the others along

    async def _find(self, key: bytes, query: bytes, asked: Asked, tcp: bool, servers: list[Server]) -> _Found | None:
        failed = False
        for left, server in zip(range(len(servers) - 1, -1, -1), servers, strict=True):
            try:
                answer = await server.ask(query, asked.end, tcp=tcp, others=failed or left > 0)
            except Unanswered as error:
                self._log.warning(f"unanswered {server}", "%s", error)
                continue
            records = read_records(answer, asked.end) if answer[4:6] != b"\0\0" else []
            if records is None or code_of(answer) in (SERVFAIL, REFUSED):
                failed = True
                continue
            if not asked.common:
                return _Found(query, answer, answer)
            return _Found(query, answer, self._cache.keep(key, answer, records))
        if asked.common:
            self._cache.fail(key)
        return None

    def _upstreams(self, sandbox: Sandbox) -> _Upstreams:
        known = self._known.get(sandbox.id)
        if known is not None:
            before, upstreams = known
            if before is sandbox:
                return upstreams
            if (before.netns, before.nameservers, before.forward) == (
                sandbox.netns, sandbox.nameservers, sandbox.forward
            ):  # fmt: skip
                self._known[sandbox.id] = (sandbox, upstreams)
                return upstreams
            self.forget(sandbox.id)
        if not sandbox.forward:
            upstreams = self._nobody
        elif not sandbox.nameservers:
            upstreams = self._node
        else:
            upstreams = _Upstreams()
            # in there our own address leads back to us
            others = [address for address in sandbox.nameservers if not _ours(address)]
            upstreams.replace(self._server(address, sandbox.netns) for address in others[:MAX_SERVERS])
        self._known[sandbox.id] = (sandbox, upstreams)
        return upstreams

    def _server(self, address: Address, netns: str) -> Server:
        server = Server(address, netns, port=self._port, patience=self._patience, now=self._now)
        self._servers.add(server)
        return server

    def _look(self) -> None:
        """Read the node's file if it is another one than last time.

        127.0.0.11 stays in: seen from the node it is not ours, but Docker's where the node itself is a container.
        """
        self._look_at = self._now() + LOOK_EVERY
        try:
            found = os.stat(self._host_conf)
            seen: tuple[int, ...] = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError:
            seen = ()
        if seen == self._seen:
            return
        self._seen = seen
        addresses = read_host_conf(self._host_conf).nameservers[:MAX_SERVERS]
        # those of before close when they have been idle: questions may still be on their way
        self._node.replace(self._server(address, "") for address in addresses)


def _ours(address: Address) -> bool:
    return (getattr(address, "ipv4_mapped", None) or address) == IPv4Address(RESOLVER_ADDRESS)
