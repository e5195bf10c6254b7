"""Logging where anyone may cause a line: one for each kind of event in a while, with how often it happened."""

import logging
import time
from collections.abc import Callable

MAX_KINDS = 256
"""Kinds remembered; with more, all are forgotten and counting begins anew."""


class SparingLog:
    """Writes the first event of a kind at once, then at most one line per `every` seconds that counts the others."""

    def __init__(self, log: logging.Logger, every: float = 10.0, now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._every = every
        self._now = now
        self._kinds: dict[str, tuple[float, int]] = {}  # when a line may be written again, events left out since

    def warning(self, kind: str, message: str, *args: object) -> None:
        """Log `message % args`, unless a line of that kind was written just now."""
        now = self._now()
        if len(self._kinds) >= MAX_KINDS and kind not in self._kinds:
            self._kinds.clear()
        after, left_out = self._kinds.get(kind, (now, 0))
        if now < after:
            self._kinds[kind] = (after, left_out + 1)
            return
        self._kinds[kind] = (now + self._every, 0)
        if left_out:
            self._log.warning(f"{message} (and %d more like it)", *args, left_out)
        else:
            self._log.warning(message, *args)
