"""A store whose confidential values are sealed before any engine sees them: not on disk, not in what etcd would hold.

Which kinds that are is decided here. The CA's key and the join tokens are part of the cluster's one object.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from hivemesh.model.cluster import Cluster
from hivemesh.model.secret import Config, Credential, Secret
from hivemesh.pki.seal import Seal
from hivemesh.store.api import Delete, Entry, Event, Expect, Put, Snapshot, Store
from hivemesh.store.tables import PREFIX

SEALED = tuple(PREFIX[kind] for kind in (Cluster, Secret, Config, Credential))


class SealedStore:
    """A `Store` in front of another one."""

    def __init__(self, inner: Store, seal: Seal) -> None:
        self._inner = inner
        self._seal = seal

    async def snapshot(self, prefix: str = "") -> Snapshot:
        """Raises `Invalid` when the key is not the one these values were sealed with."""
        found = await self._inner.snapshot(prefix)
        return replace(found, entries=tuple(map(self._opened, found.entries)))

    async def commit(
        self, changes: Sequence[Put | Delete], expect: Sequence[Expect] = (), at: int | None = None
    ) -> int:
        return await self._inner.commit([self._closed(change) for change in changes], expect, at)

    async def watch(self, prefix: str, after: int) -> AsyncIterator[tuple[Event, ...]]:
        async for batch in self._inner.watch(prefix, after):
            yield tuple(self._told(event) for event in batch)

    async def close(self) -> None:
        await self._inner.close()

    def _closed(self, change: Put | Delete) -> Put | Delete:
        if isinstance(change, Put) and change.key.startswith(SEALED):
            return replace(change, value=self._seal.close(change.value, change.key))
        return change

    def _opened(self, entry: Entry) -> Entry:
        if entry.key.startswith(SEALED):
            return replace(entry, value=self._seal.open(entry.value, entry.key))
        return entry

    def _told(self, event: Event) -> Event:
        if event.value is not None and event.key.startswith(SEALED):
            return replace(event, value=self._seal.open(event.value, event.key))
        return event
