"""What somebody else undid on this node and we put right: counted, and told as it happens.

One who fights us for the same object could do so a hundred times a second: each place is told of once a second at most,
with all that came together meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

APART = 1.0
"""Seconds between two tellings of one namespace."""
SHOWN = 8
"""Repairs in words, in an event and in a line of the log; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    namespace: str
    """As `ip netns` knows it; empty for the machine's own."""
    count: int
    words: str


Listener = Callable[[Repair], None]


def told(words: Sequence[str], count: int) -> str:
    """The first of them, and how many more there were."""
    more = f"; and {count - SHOWN} more" if count > SHOWN else ""
    return "; ".join(words[:SHOWN]) + more


class Repairs:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """By kind of place (`host`, `ingress`, `network`, `sandbox`), since the daemon began."""
        self._listeners: list[Listener] = []
        self._held: dict[str, tuple[list[str], int]] = {}  # of namespaces told of a moment ago

    def on_repair(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def note(self, place: str, namespace: str, words: Sequence[str]) -> None:
        """So much was repaired there just now."""
        self.counts[place] += len(words)
        held = self._held.get(namespace)
        if held is not None:
            first, count = held
            self._held[namespace] = [*first, *words[: SHOWN - len(first)]], count + len(words)
            return
        self._tell(namespace, words, len(words))

    def _tell(self, namespace: str, words: Sequence[str], count: int) -> None:
        self._held[namespace] = [], 0
        asyncio.get_running_loop().call_later(APART, self._later, namespace)
        for listener in tuple(self._listeners):
            listener(Repair(namespace=namespace, count=count, words=told(words, count)))

    def _later(self, namespace: str) -> None:
        words, count = self._held.pop(namespace)
        if count:
            self._tell(namespace, words, count)
