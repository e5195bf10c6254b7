"""The probes of one trace: which are sent from where, until they are answered or time is up.

To the target itself, as its callers ask for it (a virtual address, a published port), go as many as it takes to meet
each backend. To each backend, past the balancer, goes one more, and two echoes: a small one, and one as large as the
network carries. What is not answered is sent again, so that one lost packet is not taken for a broken way.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hivemesh.kernel.probing import Probe, Prober
from hivemesh.kernel.sightings import NUMBERS
from hivemesh.model.addr import Address
from hivemesh.wire.trace import Protocol, Sighting, Watch

MOST_WAYS = 16
"""Backends whose ways are probed one by one."""
PATIENCE = 0.35
"""Seconds for all answers of a round: the machines are near each other."""
AGAIN = 3
"""How many more go where one was not answered."""
_LOOK = 0.01
ELSEWHERE = NUMBERS // 2
"""The first number of probes that another node sends: the ways from here take less than half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """Where probes go: from the namespace to the address, or an echo if there is no port; `wide` bytes of the largest
    packet, 0: no echoes. `count` are sent at first."""

    namespace: str
    destination: Address
    protocol: Protocol
    port: int
    wide: int = 0
    count: int = 1


@dataclass(slots=True)
class Shots:
    """The numbers of what was sent at one aim, and why some could not be."""

    aim: Aim
    vxlan: int  # the tunnels' UDP port
    main: set[int] = field(default_factory=set)
    small: set[int] = field(default_factory=set)
    large: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)


class Salvo:
    """Probes at several aims, with one watch. `seen` tells what this node saw since it was last asked. Blocks."""

    def __init__(
        self, watch: Watch, aims: Sequence[Aim], seen: Callable[[], Iterable[Sighting]], first: int = 0
    ) -> None:
        self.shots = [Shots(aim=aim, vxlan=watch.vxlan) for aim in aims]
        self.sightings: list[Sighting] = []
        self._prober = Prober(watch)
        self._seen = seen
        self._next = first
        self._answered: set[int] = set()

    def fire(self) -> None:
        """All rounds: less than a second."""
        try:
            for shots in self.shots:
                self._send(shots, shots.main, shots.aim.protocol, 0, shots.aim.count)
                if shots.aim.wide:
                    self._send(shots, shots.small, "icmp", 0, 1)
                    self._send(shots, shots.large, "icmp", shots.aim.wide, 1)
            self._wait()
            for shots in self.shots:
                if shots.aim.count == 1:
                    self._again(shots, shots.main, shots.aim.protocol, 0)
                if shots.aim.wide:
                    self._again(shots, shots.small, "icmp", 0)
                    self._again(shots, shots.large, "icmp", shots.aim.wide)
            self._wait()
        finally:
            self._prober.close()

    def _again(self, shots: Shots, numbers: set[int], protocol: Protocol, size: int) -> None:
        if not numbers & self._answered:
            self._send(shots, numbers, protocol, size, AGAIN)

    def _send(self, shots: Shots, numbers: set[int], protocol: Protocol, size: int, count: int) -> None:
        aim = shots.aim
        probes = [
            Probe(
                number=number, protocol=protocol, namespace=aim.namespace, destination=aim.destination,
                port=aim.port, size=size,
            )
            for number in range(self._next, min(self._next + count, NUMBERS))
        ]  # fmt: skip
        self._next += len(probes)
        numbers.update(probe.number for probe in probes)
        shots.failed |= self._prober.send(probes)

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE
        namespaces = {number: s.aim.namespace for s in self.shots for number in (*s.main, *s.small, *s.large)}
        waiting = set(namespaces) - {number for s in self.shots for number in s.failed}
        while True:
            for sighting in self._seen():
                self.sightings.append(sighting)
                home = sighting.namespace == namespaces.get(sighting.number) and sighting.far is None
                if sighting.back and home and sighting.number not in self._answered:
                    self._answered.add(sighting.number)
                    if sighting.kind == "syn-ack":
                        self._prober.reset(sighting.number)
            if not waiting - self._answered or time.monotonic() > until:
                return
            time.sleep(_LOOK)
