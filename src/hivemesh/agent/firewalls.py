"""Other firewalls of this machine, looked at each second: see `kernel/foreign.py` for what is done about them.

Docker, ufw and firewalld write their rules anew whenever they are restarted or reloaded; then ours are put back.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from hivemesh.clock import Clock
from hivemesh.kernel import foreign
from hivemesh.model.errors import HivemeshError

log = logging.getLogger("hivemesh.firewalls")

PERIOD = 1.0
"""Seconds between looks. Nearly all of them are one question to the kernel: has any rule changed?"""
AGAIN = 0.1
"""Seconds to the next look once something was put back, doubled up to `PERIOD` while that goes on: a reload has several
steps, and IPv6 is often a later one."""


class Look(Protocol):
    """`kernel.foreign.let_pass`, in a thread."""

    def __call__(self, bridges: Collection[str]) -> Awaitable[Sequence[str]]: ...


class Firewalls:
    """`bridges` are those of ours whose traffic the machine forwards, by now; `restored` hears what was put back."""

    def __init__(
        self,
        bridges: Callable[[], Collection[str]],
        look: Look,
        clock: Clock,
        restored: Callable[[Sequence[str]], None],
        state: Callable[[], object] = foreign.state,
    ) -> None:
        self._bridges = bridges
        self._look = look
        self._clock = clock
        self._restored = restored
        self._state = state
        self._known: set[str] = set()
        self._said = ""

    async def run(self) -> None:
        """Until cancelled, which leaves the rules: what runs here goes on without a daemon."""
        last: object = None
        soon = AGAIN
        while True:
            hurry = False
            try:
                bridges = frozenset(self._bridges())
                now = (bridges, self._state())
                if now != last:
                    added = await self._look(bridges)
                    self._tell(added)
                    last = None if added else now  # our own change moved it on, and perhaps somebody else's too
                    hurry = bool(added)
                self._said = ""
            except (HivemeshError, OSError) as error:
                if str(error) != self._said:
                    log.error("cannot see to it that other firewalls let our traffic pass: %s", error)
                    hurry = True  # a chain may have gone while it was read
                self._said = str(error)
            await self._clock.sleep(soon if hurry else PERIOD)
            soon = min(2 * soon, PERIOD) if hurry else AGAIN

    def _tell(self, places: Sequence[str]) -> None:
        again = [f"{place}: our bridges were not let through any more" for place in places if place in self._known]
        if again:
            self._restored(again)
        for place in places:
            if place not in self._known:
                self._known.add(place)
                log.warning(
                    "another firewall drops what is forwarded (%s): rules with the comment `hivemesh` in front of its "
                    "end let our bridges through; they go when this node needs them no more",
                    place,
                )
