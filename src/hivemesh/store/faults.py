"""A store that tells of each write, for tests of what happens when we end before it, or before anybody hears of it."""

from collections.abc import AsyncIterator, Callable, Sequence

from hivemesh.store.api import Delete, Event, Expect, Put, Snapshot, Store


class Told:
    """Implements `Store`: passes everything through; `operation` hears `commit` just before, `committed` just after."""

    def __init__(self, store: Store, operation: Callable[[str], None]) -> None:
        self._store = store
        self._operation = operation

    async def snapshot(self, prefix: str = "") -> Snapshot:
        return await self._store.snapshot(prefix)

    async def commit(
        self, changes: Sequence[Put | Delete], expect: Sequence[Expect] = (), at: int | None = None
    ) -> int:
        self._operation("commit")
        revision = await self._store.commit(changes, expect, at)
        self._operation("committed")
        return revision

    def watch(self, prefix: str, after: int) -> AsyncIterator[tuple[Event, ...]]:
        return self._store.watch(prefix, after)

    async def close(self) -> None:
        await self._store.close()
