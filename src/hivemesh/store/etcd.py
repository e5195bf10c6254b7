"""The replicated store: a cluster of etcd servers, reached by every manager.

    <root>data/<key>   what the cluster knows
    <root>last         written by each commit: by it a commit sees that nothing came in between
    <root>meta         format and `offset`
    <root>leader       see `store/leader.py`

Problems this class answers:

- *Moving here from another engine.* Our revisions are etcd's plus an offset, so that they go on growing.
- *A commit without an answer*, because a member died at that moment. With `at` it is asked again: it can take effect
  only once, and the mark it leaves in `last` tells whether it did.
- *A watch whose connection breaks* goes on where it was, at whichever endpoint answers.
- *History without end.* etcd keeps every revision until it is compacted: the committer does that now and then, unless
  the etcd is somebody else's.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Any

import aiohttp
import msgspec

import hivemesh
from hivemesh.model.errors import HivemeshError, Invalid, Unavailable
from hivemesh.store.api import Compacted, Delete, Entry, Event, Expect, Mismatch, Put, Snapshot, Store
from hivemesh.store.etcdapi import (
    OUT_OF_RANGE,
    EtcdClient,
    EtcdError,
    KeyValue,
    RangeResponse,
    TxnResponse,
    WatchEvent,
    delete,
    get,
    put,
    written_at,
)

log = logging.getLogger("hivemesh.store")

ROOT = "hivemesh/"
FORMAT = 1
HISTORY = 10_000
"""Revisions kept for watches that resume."""
PAGE = 250
"""Entries read in one request."""
CHUNK = 4 << 20
"""Bytes of values written in one request while the store is filled."""
ATTEMPTS, ATTEMPT_TIMEOUT = 3, 2.0
"""How often, and for how many seconds each, a commit is asked for while members of etcd come and go."""
RETRY = (0.05, 1.0)
"""Seconds until a watch that broke is tried again, doubled each time."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """`<root>meta`."""

    format: int = FORMAT
    version: str = hivemesh.__version__
    offset: int = 0


async def fill(store: Store, entries: Iterable[Entry]) -> None:
    """Write all of them to an empty store, in as many commits as it takes."""
    chunk: list[Put | Delete] = []
    size = 0
    for entry in entries:
        if chunk and (size + len(entry.value) > CHUNK or len(chunk) == PAGE):
            await store.commit(chunk)
            chunk, size = [], 0
        chunk.append(Put(entry.key, entry.value))
        size += len(entry.value)
    if chunk:
        await store.commit(chunk)


async def wipe(client: EtcdClient, root: str) -> int:
    """Nothing is under `root` when this returns etcd's revision."""
    start = root.encode()
    wiped = await client.call("kv/deleterange", {"key": start, "range_end": _end(start)}, RangeResponse)
    return wiped.header.revision


def data_key(root: bytes, key: str = "") -> bytes:
    """What etcd calls a key of the store."""
    return root + b"data/" + key.encode()


def last_key(root: bytes) -> bytes:
    """What every commit writes."""
    return root + b"last"


class EtcdStore:
    """A `Store` on the keys under `root`. Made by `open` or `create`; owns its client."""

    def __init__(self, client: EtcdClient, root: str, offset: int, history: int | None) -> None:
        self.client = client
        self._root = root.encode()
        self._data = data_key(self._root)
        self._last = last_key(self._root)
        self._offset = offset
        self._history = history
        self._compacted = 0
        self._closed = asyncio.Event()

    @classmethod
    async def open(cls, client: EtcdClient, root: str = ROOT, history: int | None = HISTORY) -> "EtcdStore | None":
        """The store under `root`, None when there is none. `history` None leaves compacting to others.

        Raises `Invalid` when another version wrote it, `Unavailable` when etcd does not answer.
        """
        found = await client.call("kv/range", {"key": f"{root}meta".encode()}, RangeResponse)
        if not found.kvs:
            return None
        try:
            meta = msgspec.json.decode(found.kvs[0].value, type=Meta)
        except msgspec.MsgspecError:
            meta = Meta(format=0, version="unknown")
        if meta.format != FORMAT:
            raise Invalid(
                f"the store in etcd under {root!r} was written by version {meta.version} of hivemesh (format "
                f"{meta.format}, this is {hivemesh.__version__} with format {FORMAT}); run that version"
            )
        return cls(client, root, meta.offset, history)

    @classmethod
    async def create(
        cls, client: EtcdClient, root: str = ROOT, history: int | None = HISTORY, *, after: int = 0
    ) -> "EtcdStore":
        """An empty store whose revisions are above `after`; what was under `root` is gone.

        It counts as there only once `finish` was called: an interrupted move leaves nothing.
        """
        revision = await wipe(client, root)
        return cls(client, root, max(0, after - revision), history)

    async def finish(self) -> None:
        """From now on `open` finds it."""
        meta = msgspec.json.encode(Meta(offset=self._offset))
        await self.client.call("kv/put", {"key": self._root + b"meta", "value": meta}, RangeResponse)

    @property
    def root(self) -> bytes:
        return self._root

    async def snapshot(self, prefix: str = "") -> Snapshot:
        self._check_open()
        first = self._data + prefix.encode()
        while True:
            try:
                return await self._read(first)
            except EtcdError as error:
                if error.code != OUT_OF_RANGE:  # compacted while we read page by page
                    raise

    async def commit(
        self, changes: Sequence[Put | Delete], expect: Sequence[Expect] = (), at: int | None = None
    ) -> int:
        self._check_open()
        mark = os.urandom(16)
        conditions = [written_at(self._key(each.key), self._theirs(each.revision)) for each in expect]
        if at is not None:
            conditions.append(written_at(self._last, max(0, at - self._offset), or_before=True))
        success = [
            put(self._key(change.key), change.value) if isinstance(change, Put) else delete(self._key(change.key))
            for change in changes
        ]
        success.append(put(self._last, mark))
        failure = [get(self._key(each.key), keys_only=True) for each in expect]
        failure.append(get(self._last))
        answer = await self._transact(conditions, success, failure, repeat=at is not None)
        revision = answer.header.revision if answer.succeeded else self._outcome(answer, expect, mark)
        await self._forget(revision)
        return revision + self._offset

    async def watch(self, prefix: str, after: int) -> AsyncIterator[tuple[Event, ...]]:
        first = self._data + prefix.encode()
        position, delay = max(0, after - self._offset), RETRY[0]
        while not self._closed.is_set():
            try:
                async with aclosing(self._watched(first, position + 1)) as batches:
                    async for batch in batches:
                        position, delay = batch[0].revision - self._offset, RETRY[0]
                        yield batch
            except TimeoutError:  # nothing was written for a while: the connection may be dead, or not
                continue
            except (HivemeshError, aiohttp.ClientError, OSError) as error:
                if self._closed.is_set():
                    return
                log.info("following the store: %s; trying again", error)
            try:
                await asyncio.wait_for(self._closed.wait(), delay)
            except TimeoutError:
                delay = min(2 * delay, RETRY[1])

    async def close(self) -> None:
        self._closed.set()
        await self.client.close()

    # --- reading ------------------------------------------------------------------------------------------------

    async def _read(self, first: bytes) -> Snapshot:
        wanted: dict[str, Any] = {"key": first, "range_end": _end(first), "limit": str(PAGE)}
        entries: list[Entry] = []
        revision = 0
        while True:
            page = await self.client.call("kv/range", wanted, RangeResponse)
            revision = revision or page.header.revision
            entries += [Entry(self._name(kv), kv.value, kv.mod_revision + self._offset) for kv in page.kvs]
            if not page.more:
                return Snapshot(revision + self._offset, tuple(entries))
            wanted |= {"key": page.kvs[-1].key + b"\0", "revision": str(revision)}

    async def _watched(self, first: bytes, revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        """One connection's worth, from etcd's `revision` on. Raises `Compacted`, and what the client raises."""
        pending: list[WatchEvent] = []
        async with aclosing(self.client.watch(first, _end(first), revision)) as answers:
            async for answer in answers:
                if answer.canceled:
                    if answer.compact_revision:
                        raise Compacted(f"changes after revision {revision - 1 + self._offset} are no longer kept")
                    raise Unavailable(f"etcd ended a watch: {answer.cancel_reason or 'no reason given'}")
                pending += answer.events
                if answer.fragment:
                    continue
                for _, events in groupby(pending, key=lambda event: event.kv.mod_revision):
                    yield tuple(map(self._event, events))
                pending = []

    def _event(self, event: WatchEvent) -> Event:
        value = None if event.type == "DELETE" else event.kv.value
        return Event(self._name(event.kv), value, event.kv.mod_revision + self._offset)

    # --- writing ------------------------------------------------------------------------------------------------

    async def _transact(
        self, conditions: Sequence[Any], success: Sequence[Any], failure: Sequence[Any], *, repeat: bool
    ) -> TxnResponse:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self.client.txn(conditions, success, failure, ATTEMPT_TIMEOUT if repeat else 10.0)
            except Unavailable:
                if not repeat or attempt == ATTEMPTS or self._closed.is_set():
                    raise
                await asyncio.sleep(0.1 * attempt)
        raise AssertionError

    def _outcome(self, answer: TxnResponse, expect: Sequence[Expect], mark: bytes) -> int:
        """Of a transaction whose conditions did not hold: perhaps because it took effect before. Raises `Mismatch`."""
        found = [response.response_range.kvs for response in answer.responses]
        last = found[-1]
        if last and last[0].value == mark:
            return last[0].mod_revision
        for each, kvs in zip(expect, found, strict=False):
            if (kvs[0].mod_revision + self._offset if kvs else 0) != each.revision:
                raise Mismatch(each.key)
        raise Mismatch("")

    async def _forget(self, revision: int) -> None:
        """Drop history in large steps: it costs a disk write."""
        if self._history is None or revision - self._compacted < 2 * self._history:
            return
        self._compacted = revision - self._history
        try:
            await self.client.call("kv/compaction", {"revision": str(self._compacted)}, RangeResponse)
        except HivemeshError as error:  # or somebody else was faster
            log.debug("the store's history is not compacted: %s", error)

    def _theirs(self, revision: int) -> int:
        """etcd's number of our revision; one from before the offset is of another store and matches nothing."""
        return 0 if revision == 0 else revision - self._offset if revision > self._offset else 1 << 62

    def _key(self, key: str) -> bytes:
        return self._data + key.encode()

    def _name(self, kv: KeyValue) -> str:
        return kv.key[len(self._data) :].decode()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Unavailable("the store is closed: this node is stopping or leaving the swarm")


def _end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
