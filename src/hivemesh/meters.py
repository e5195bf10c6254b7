"""How long things take, counted where they happen; whoever shows it reads it. Pure."""

import contextlib
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds in seconds for what should take milliseconds."""
SLOW = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""For what passes over a network, or a disk."""


class Durations:
    """A histogram. Safe enough between threads: a count may rarely be lost."""

    def __init__(self, bounds: Sequence[float] = FAST) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """By bucket, the last without an upper bound; not cumulative."""
        self.total = 0.0
        """Seconds."""

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Observe what the block takes, also when it fails."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.observe(time.monotonic() - begun)
