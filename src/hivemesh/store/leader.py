"""Who leads: one manager at a time runs the control loops and holds the agents' sessions.

With etcd that is whoever's name is in the key `<root>leader`, which hangs on a lease. The leader renews the lease
several times in its life and stops leading by its own clock before the lease can be over; the others watch the key. The
store does not depend on any of this: a commit counts only when nobody else's came in between, whoever leads.

*Being chosen is a commit* of its own: what an earlier leader computed and did not write, since its machine stood still,
counts no more, even if the one that followed found nothing to change.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

import aiohttp

from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.store.etcd import data_key, last_key
from hivemesh.store.etcdapi import EtcdClient, RangeResponse, get, has_value, put, written_at

log = logging.getLogger("hivemesh.store")

TTL = 2
"""Seconds a lease lasts without being renewed: the least that etcd grants with its own election time-out of 1 s."""
RENEW_EVERY = 0.4
"""Seconds."""
STOP_AFTER = 1.6
"""Seconds without a renewal after which a leader stops: less than the lease lasts, which begins when etcd renews it."""
CALL_TIMEOUT = 1.0
"""Seconds for a question: one that was asked while etcd itself had no leader may never be answered."""
RETRY = 0.25
"""Seconds between attempts while etcd does not answer."""
TERM = "term"
"""The key, among those of the store, that who is chosen writes; no table reads it."""

Lead = Callable[[], Awaitable[None]]


class Election(Protocol):
    """How a manager comes to lead."""

    @property
    def leader(self) -> NodeID | None:
        """The leading manager as far as known; None while there is none."""
        ...

    async def run(self, lead: Lead) -> None:
        """Call `lead` whenever this manager is chosen, and cancel it when it is no more. Raises what `lead` raises."""
        ...

    async def resign(self) -> None:
        """Let somebody else lead, now."""
        ...


class Alone:
    """With an embedded store nobody else can."""

    def __init__(self, me: NodeID) -> None:
        self.leader: NodeID | None = me

    async def run(self, lead: Lead) -> None:
        await lead()

    async def resign(self) -> None:
        raise Unavailable("this is the only manager of the swarm")


class EtcdElection:
    """By a lease in etcd. `willing` says whether this manager wants to lead at all."""

    def __init__(self, client: EtcdClient, root: bytes, me: NodeID, willing: Callable[[], bool]) -> None:
        self.leader: NodeID | None = None
        self._client = client
        self._key = root + b"leader"
        self._root = root
        self._me = me
        self._willing = willing
        self._lease = 0

    async def run(self, lead: Lead) -> None:
        try:
            while True:
                await self._chosen()
                log.info("this manager leads")
                try:
                    await self._reign(lead)
                finally:
                    self.leader = None
                log.warning("this manager leads no more")
        finally:
            with contextlib.suppress(HivemeshError):
                await self.resign()

    async def resign(self) -> None:
        lease, self._lease = self._lease, 0
        if lease:
            await self._client.revoke(lease)

    async def _chosen(self) -> None:
        """Until this manager's name is in the key."""
        while True:
            try:
                held, revision = await self._try() if self._willing() else await self._look()
                if held:
                    return
                async with asyncio.timeout(TTL):  # a look now and then: a watch may be deaf
                    await self._vacant(revision)
            except TimeoutError:
                pass
            except (HivemeshError, aiohttp.ClientError, OSError) as error:
                log.debug("no election: %s", error)
                self.leader = None
                await asyncio.sleep(RETRY)

    async def _try(self) -> tuple[bool, int]:
        """Take the key if nobody has it, or an earlier life of ours. Whether we have it, and etcd's revision."""
        lease = await self._client.grant(TTL, CALL_TIMEOUT)
        name = self._me.encode()
        chosen = [put(data_key(self._root, TERM), name), put(last_key(self._root), os.urandom(16))]
        take, look = [put(self._key, name, lease), *chosen], [get(self._key)]
        free = await self._client.txn([written_at(self._key, 0)], take, look, CALL_TIMEOUT)
        if not free.succeeded:
            free = await self._client.txn([has_value(self._key, name)], take, look, CALL_TIMEOUT)
        if free.succeeded:
            self._lease, self.leader = lease, self._me
            return True, free.header.revision
        await self._client.revoke(lease)
        found = free.responses[0].response_range.kvs
        self.leader = NodeID(found[0].value.decode()) if found else None
        return False, free.header.revision

    async def _look(self) -> tuple[bool, int]:
        found = await self._client.call("kv/range", {"key": self._key}, RangeResponse, CALL_TIMEOUT)
        self.leader = NodeID(found.kvs[0].value.decode()) if found.kvs else None
        return False, found.header.revision

    async def _vacant(self, revision: int) -> None:
        """Until the key is removed or written anew, after etcd's `revision`."""
        async with aclosing(self._client.watch(self._key, b"", revision + 1)) as answers:
            async for answer in answers:
                if answer.canceled or answer.events:
                    return

    async def _reign(self, lead: Lead) -> None:
        """Lead until the lease may be over. Raises what `lead` raises."""
        leading = asyncio.ensure_future(lead())
        renewing = asyncio.create_task(self._renew(), name="leader's lease")
        try:
            await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
        finally:
            for each in (leading, renewing):
                each.cancel()
            await asyncio.gather(leading, renewing, return_exceptions=True)
            with contextlib.suppress(HivemeshError):
                await self.resign()

    async def _renew(self) -> None:
        """Returns when the lease is over, or may be, or this manager does not want to lead any more."""
        loop = asyncio.get_running_loop()
        good = loop.time()
        while self._willing() and self._lease:
            asked = loop.time()
            if asked - good >= STOP_AFTER:  # this process stood still
                return
            try:
                if not await self._client.keep_alive(self._lease, STOP_AFTER - (asked - good)):
                    return
                good = asked
            except HivemeshError as error:
                log.info("the leader's lease is not renewed: %s", error)
            if loop.time() - good >= STOP_AFTER - 0.05:
                return
            await asyncio.sleep(min(RENEW_EVERY, STOP_AFTER - (loop.time() - good)))
