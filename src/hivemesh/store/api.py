"""The Store Protocol: keys and values with revisions, compare-and-swap transactions and watches.

Shaped so that etcd's v3 API and an embedded SQLite file can both stand behind it unchanged.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemesh.model.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value and the revision of the commit that wrote it."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Expect:
    """A condition of a transaction: the key was last written at `revision`; 0 means it does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Removing a key that does not exist changes nothing."""

    key: str


@dataclass(frozen=True, slots=True)
class Event:
    """One key's change; `value` is None when the key was deleted."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries under a prefix, as of `revision`."""

    revision: int
    entries: tuple[Entry, ...]


class Mismatch(Exception):
    """A transaction's condition did not hold; nothing was written. `key` is empty when the condition was `at`."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key or 'the store'} was changed by somebody else")
        self.key = key


class Silent(Unavailable):
    """The store does not answer: what was asked may have been done, or may yet be."""


class Compacted(Exception):
    """The history a watch asked for is gone: read a snapshot and watch from there."""


class Store(Protocol):
    """Every write is durable when its call returns. Revisions grow by one per commit, over all keys."""

    async def snapshot(self, prefix: str = "") -> Snapshot: ...

    async def commit(
        self, changes: Sequence[Put | Delete], expect: Sequence[Expect] = (), at: int | None = None
    ) -> int:
        """All or nothing. Returns the new revision.

        With `at` it counts only if nothing at all was committed after that revision: what was read there still holds.
        Raises `Mismatch`, or `Unavailable` when the disk refuses or there is no majority to write.
        """
        ...

    def watch(self, prefix: str, after: int) -> AsyncIterator[tuple[Event, ...]]:
        """Each commit after revision `after`, in order, one batch per commit. Raises `Compacted`."""
        ...

    async def close(self) -> None: ...
