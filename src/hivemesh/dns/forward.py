"""Questions that are not about the swarm: asked of the name servers of the node, or of the sandbox's own.

A question is asked once, however many wait for it; its answer is kept for as long as it says, for everyone who asks
the same servers. Servers are tried in their order, those that were silent a moment ago last.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from weakref import WeakSet

from hivemesh.dns.cache import LIMIT, Cache
from hivemesh.dns.hostconf import RESOLV_CONF, read_host_conf
from hivemesh.dns.upstream import PATIENCE, Server, Unanswered
from hivemesh.log import SparingLog
from hivemesh.meters import Durations
from hivemesh.model.addr import Address
from hivemesh.wire.dnsanswer import (
    REFUSED,
    SERVFAIL,
    Asked,
    Record,
    code_of,
    fitted,
    kept_form,
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
        """The one to be asked first comes last."""
        if len(self.servers) == 1:
            return [*self.servers]
        return sorted(self.servers, key=lambda server: server.avoided)[::-1]


Told = Callable[[bytes | None], None]
"""Learns the answer; None: the question cannot be passed on, or nobody answered."""


@dataclass(slots=True)
class _Flight:
    """A question out, and those who wait for its answer. Servers are asked one after the other."""

    name: tuple[bool, int, bytes]
    """By TCP or not, the most bytes of an answer, and the key it is kept by: what those who wait have in common."""
    query: bytes
    asked: Asked
    left: list[Server]  # the next one last
    waiting: list[tuple[bytes, Asked, str, Told]]
    begun: float
    failed: bool = False  # a server had an answer, but a bad one


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
        self._flights: dict[tuple[bool, int, bytes], _Flight] = {}
        self._asking: dict[str, int] = {}
        self._asking_all = 0
        self._look_at = 0.0
        self.took = Durations()
        """From a question's first asking to the last word about it."""
        self.unanswered = 0
        self._seen: tuple[int, ...] | None = None
        self._look()

    def ready(self, query: bytes, sandbox: Sandbox) -> bytes | None:
        """The answer over UDP, if one that still holds was given to a query of these very bytes; it has the query's id.

        Looking costs next to nothing; who gets None asks.
        """
        if self._now() >= self._look_at:
            self._look()
        known = self._known.get(sandbox.id)
        if known is None or known[0] is not sandbox:
            return None
        found = self._cache.ready.get(known[1].tag + query[2:])
        return query[:2] + found[0] if found is not None and self._now() < found[1] else None

    def ask(self, query: bytes, sandbox: Sandbox, told: Told, *, tcp: bool = False) -> bytes | None:
        """The answer, if there is one that still holds; else `told` gets it, once, now or later.

        An answer has the query's id and its question as it is written there, and no more bytes than the client takes.
        """
        if self._now() >= self._look_at:
            self._look()
        upstreams = self._upstreams(sandbox)
        asked = read_query(query)
        if asked is None or not upstreams.servers:
            told(None)
            return None
        key = upstreams.tag + asked.key
        if asked.common and (found := self._cache.find(key)) is not None:
            answer = fitted(found[0], query, asked, tcp=tcp)
            if asked.bare and not tcp:  # ready for the next of the same writing
                self._cache.prepare(upstreams.tag + query[2:], answer[2:], found[1])
            return answer
        self._pass_on((tcp, asked.limit, key), (query, asked, sandbox.id, told), upstreams)
        return None

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
            await asyncio.gather(*server.dialling)

    def _pass_on(
        self, name: tuple[bool, int, bytes], who: tuple[bytes, Asked, str, Told], upstreams: _Upstreams
    ) -> None:
        """Ask, or wait with those who ask the same already."""
        query, asked, sandbox, told = who
        asking = self._asking.get(sandbox, 0)
        full = asking >= MAX_ASKING_EACH or self._asking_all >= MAX_ASKING
        if full:
            self._log.warning("full", "too many questions wait for other name servers: one of %s is refused", sandbox)
        if full or self._cache.failed(name[2]):
            told(None)
            return
        self._asking[sandbox] = asking + 1
        self._asking_all += 1
        flight = self._flights.get(name)
        if flight is not None:
            flight.waiting.append(who)
            return
        flight = self._flights[name] = _Flight(name, query, asked, upstreams.in_turn(), [who], self._now())
        self._ask_next(flight)

    def _ask_next(self, flight: _Flight) -> None:
        server = flight.left.pop()
        others = flight.failed or bool(flight.left)
        server.ask(flight.query, flight.asked.end, partial(self._heard, flight), tcp=flight.name[0], others=others)

    def _heard(self, flight: _Flight, answer: bytes | Unanswered) -> None:
        if isinstance(answer, Unanswered):
            self._log.warning(str(answer), "%s", answer)
        else:
            records = read_records(answer, flight.asked.end) if answer[4:6] != b"\0\0" else []
            if records is not None and code_of(answer) not in (SERVFAIL, REFUSED):
                if flight.asked.common:
                    self._cache.keep(flight.name[2], answer, records)
                self._land(flight, answer, records)
                return
            flight.failed = True
        if flight.left:
            self._ask_next(flight)
            return
        if flight.asked.common:
            self._cache.fail(flight.name[2])
        self._land(flight, None, [])

    def _land(self, flight: _Flight, answer: bytes | None, records: list[Record]) -> None:
        """Tell all who wait."""
        del self._flights[flight.name]
        self.took.observe(self._now() - flight.begun)
        self.unanswered += answer is None
        shared: bytes | None = None  # for those whose query differs in writing
        for query, asked, sandbox, told in flight.waiting:
            self._asking_all -= 1
            left = self._asking[sandbox] - 1
            if left:
                self._asking[sandbox] = left
            else:
                del self._asking[sandbox]
            if answer is None:
                told(None)
            elif query is flight.query or query[2:] == flight.query[2:]:
                told(fitted(answer, query, asked, tcp=flight.name[0]))
            else:
                if shared is None:
                    shared, _ = kept_form(answer, records)
                told(fitted(shared, query, asked, tcp=flight.name[0]))

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
