"""Which nodes are alive: each owes a heartbeat, and three missed mean down."""

from collections.abc import Callable, Iterable

from hivemesh.clock import Clock
from hivemesh.model.ids import NodeID

MISSED = 3
"""Heartbeats a node may miss (Docker's number)."""
TICKS = 5
"""Looks at the clock per heartbeat period."""


class Monitor:
    """Remembers by when each node must have been heard, and calls `down` once for each that was not.

    A node first seen here (a manager that just started, a node that just joined) gets the same grace as one that was
    just heard. When the clock jumps, or this process did not run for a while, silence proves nothing: everybody gets
    the lost time on top.
    """

    def __init__(self, clock: Clock, period: Callable[[], float], down: Callable[[NodeID], None]) -> None:
        self._clock = clock
        self._period = period
        self._down = down
        self._deadline: dict[NodeID, float] = {}
        self._heard: dict[NodeID, float] = {}

    def heard(self, node: NodeID) -> None:
        """A frame of the node arrived."""
        self._heard[node] = now = self._clock.steady()
        self._deadline[node] = now + MISSED * self._period()

    def silence(self, node: NodeID) -> float | None:
        """Seconds since the node was heard; None: never by this manager."""
        heard = self._heard.get(node)
        return None if heard is None else self._clock.steady() - heard

    def remember(self, nodes: Iterable[NodeID]) -> None:
        """When these were heard, and no others."""
        self._heard = {node: self._heard[node] for node in nodes if node in self._heard}

    def watch(self, nodes: Iterable[NodeID]) -> None:
        """Exactly these nodes owe heartbeats; those not yet watched get a full grace."""
        grace = self._clock.steady() + MISSED * self._period()
        self._deadline = {node: self._deadline.get(node, grace) for node in nodes}

    async def run(self) -> None:
        """Look at the clock a few times per heartbeat period."""
        while True:
            tick = self._period() / TICKS
            before = self._clock.steady()
            await self._clock.sleep(tick)
            lost = self._clock.steady() - before - tick
            if abs(lost) > self._period():
                self._deadline = {node: deadline + lost for node, deadline in self._deadline.items()}
            for node in self._overdue():
                del self._deadline[node]
                self._down(node)

    def _overdue(self) -> list[NodeID]:
        now = self._clock.steady()
        return [node for node, deadline in self._deadline.items() if deadline < now]
