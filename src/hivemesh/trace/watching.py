"""Looking out for probes on this node, for its own traces and others': bounded in number, sockets and time."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from hivemesh.kernel.sightings import Ear, listen
from hivemesh.model.errors import Unavailable
from hivemesh.wire.trace import Sighting, Watch

MOST = 16
"""Traces that a node looks out for at a time."""
MOST_EARS = 40
"""Namespaces in which it listens for one trace."""
LIFE = 8.0
"""Seconds until it looks out no more, whether anybody asked or not: a trace takes less than five."""


@dataclass(slots=True)
class _Watched:
    until: float
    ears: dict[str, Ear] = field(default_factory=dict)

    def close(self) -> None:
        for ear in self.ears.values():
            ear.close()


class Watching:
    """Safe in threads of their own; all methods block for a moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}

    def look_out(self, watch: Watch, namespaces: Iterable[str]) -> None:
        """From now on, also there. Raises `Unavailable` while there are too many, `OSError` without the right."""
        with self._lock:
            self._drop(time.monotonic())
            held = self._watched.get(watch.id)
            if held is None:
                if len(self._watched) >= MOST:
                    raise Unavailable(
                        f"this node looks out for the probes of {MOST} traces already: try again in a moment"
                    )
                held = self._watched[watch.id] = _Watched(time.monotonic() + LIFE)
            wanted = [name for name in dict.fromkeys(namespaces) if name not in held.ears]
            for ear in listen(wanted[: MOST_EARS - len(held.ears)], watch):
                held.ears[ear.namespace] = ear

    def seen(self, watch: Watch) -> list[Sighting]:
        """What came since the last time."""
        with self._lock:
            held = self._watched.get(watch.id)
            return [] if held is None else [sighting for ear in held.ears.values() for sighting in ear.read()]

    def done(self, watch: Watch) -> None:
        with self._lock:
            held = self._watched.pop(watch.id, None)
            if held is not None:
                held.close()

    def tidy(self) -> None:
        """Let go of what nobody came back for."""
        with self._lock:
            self._drop(time.monotonic())

    def close(self) -> None:
        with self._lock:
            self._drop(float("inf"))

    def _drop(self, now: float) -> None:
        for identifier in [i for i, held in self._watched.items() if held.until <= now]:
            self._watched.pop(identifier).close()
