"""Wanted and actual side by side, for one kind of object that is compared as a value."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """The work that is left: `remove` holds nothing that setting one of `put` replaces."""

    put: frozenset[T]
    remove: frozenset[T]


class Delta(Generic[T]):
    """What is believed to be there of one kind, against what is wanted.

    Belief starts unknown and becomes unknown again after a failure or a surprise: then it is read back before anything
    is done. While it holds, a change costs what it changes, however much is there.
    """

    def __init__(self, key: Callable[[T], Hashable]) -> None:
        """Of two values with the same key only one can be there: setting one replaces the other."""
        self._key = key
        self._actual: frozenset[T] | None = None

    @property
    def needs_readback(self) -> bool:
        return self._actual is None

    def forget(self) -> None:
        """Believe nothing until the next read-back."""
        self._actual = None

    def believe(self, actual: Iterable[T]) -> None:
        """That is what is there: it was read, or just made so."""
        self._actual = actual if isinstance(actual, frozenset) else frozenset(actual)

    def change(self, wanted: frozenset[T]) -> Change[T]:
        """What leads from belief to `wanted`. Only after a read-back."""
        assert self._actual is not None, "read back first"
        if wanted is self._actual:
            return Change(frozenset(), frozenset())
        put = wanted - self._actual
        remove = self._actual - wanted
        if put and remove:
            replaced = {self._key(value) for value in put}
            remove = frozenset(value for value in remove if self._key(value) not in replaced)
        return Change(put, remove)
