"""Counters of the kernel, which begin anew with each object they hang on, summed up so that nothing counts down. Pure.

The number of sums is bounded: what comes once a family is full is added up under the label `other`. What was not seen
for long makes room.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

MOST = 2000
"""Sums per family."""
KEEP = 900.0
"""Seconds that a sum stays after the last object that it counted has gone: several intervals of a scraper."""
OTHER = "other"

Labels = tuple[str, ...]
Sample = tuple[str, Labels, str, int]
"""Family, labels, the source (tells the objects of one sum apart), and what the source shows."""


@dataclass(slots=True)
class _Sum:
    value: int = 0
    seen: float = 0.0


@dataclass(slots=True)
class Tally:
    """All sums by family and labels."""

    most: int = MOST
    _sums: dict[str, dict[Labels, _Sum]] = field(default_factory=dict)
    _last: dict[tuple[str, Labels, str], tuple[int, float]] = field(default_factory=dict)

    def add(self, samples: Iterable[Sample], now: float) -> None:
        """All that counts at this moment. A source that shows less than before has begun anew."""
        for family, labels, source, value in samples:
            key = (family, labels, source)
            before, _ = self._last.get(key, (0, now))
            self._last[key] = value, now
            found = self._sum(family, labels)
            found.value += value - before if value >= before else value
            found.seen = now
        # one that could not be read for once is no new one
        self._last = {key: known for key, known in self._last.items() if known[1] >= now - KEEP}
        for sums in self._sums.values():
            for labels in [labels for labels, found in sums.items() if found.seen < now - KEEP]:
                if any(label != OTHER for label in labels):
                    del sums[labels]

    def _sum(self, family: str, labels: Labels) -> _Sum:
        sums = self._sums.setdefault(family, {})
        found = sums.get(labels)
        if found is None:
            if len(sums) >= self.most:
                labels = (OTHER,) * len(labels)
            found = sums.setdefault(labels, _Sum())
        return found

    def of(self, family: str) -> dict[Labels, int]:
        return {labels: found.value for labels, found in self._sums.get(family, {}).items()}
