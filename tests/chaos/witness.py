"""What a storm may cost, and what it may not: the judge of all that clients and lookers have seen.

Told by the storm: which node was troubled by what, and when. Seen by looking at the managers all the time: which tasks
they know, and since when they know one to be gone. From both follows what each failed request is excused by; what
nothing excuses is a fault of the product.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from chaos_clients import Asked

from pace import Pace

GRACE = 1.0
"""Seconds that a node may go on leading to what the managers know to be gone; also what a heal may take."""
REPAIR = 2.0
"""Seconds until what somebody damaged must be right again."""
PATIENCE = 5.0
"""Seconds without a leader, at most, in which nobody can be told anything."""
LOOKING = 0.5
"""Seconds between two looks at the managers, at most; what a look can be late by."""
TRAILS = 0.5
"""Seconds that a manager may show less than another one has promised."""


@dataclass(slots=True)
class Span:
    """Something that lasts: `end` is infinite until it is over."""

    what: str
    node: str
    begin: float
    end: float = float("inf")

    def meets(self, begin: float, end: float, after: float = 0) -> bool:
        """Also so long after it was over."""
        return self.begin <= end and begin <= self.end + after


@dataclass(slots=True)
class Witness:
    """Times are of the monotonic clock, which all processes of a machine share."""

    nodes: tuple[str, ...]
    pace: Pace
    apart: list[Span] = field(default_factory=list)
    """A node without a session: its daemon is dead, or cannot reach a leader."""
    excused: list[Span] = field(default_factory=list)
    """Requests through this node ("": any) may fail."""
    endings: list[float] = field(default_factory=list)
    """Moments when tasks of the service began to end: a node that is apart learns nothing of it."""
    gone: dict[str, float] = field(default_factory=dict)
    """By address: since when the managers know that its task has ended, or its node is down."""
    faults: list[str] = field(default_factory=list)
    """What nothing excuses."""
    _history: list[tuple[str, float, float]] = field(default_factory=list)
    """Addresses that were gone, since when and until when at least: the next task got them."""
    _looked: float = 0.0
    _doubles: set[str] = field(default_factory=set)

    # --- told by the storm ------------------------------------------------------------------------------------------

    def part(self, node: str, why: str) -> Span:
        """The node is on its own from now on; the caller says when that is over."""
        span = Span(why, node, time.monotonic())
        self.apart.append(span)
        return span

    def excuse(self, why: str, node: str = "", seconds: float = float("inf")) -> Span:
        now = time.monotonic()
        span = Span(why, node, now, now + seconds)
        self.excused.append(span)
        return span

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Tasks are told to end by what is done here."""
        self.endings.append(time.monotonic())
        yield
        self.endings.append(time.monotonic())

    # --- seen at the managers ---------------------------------------------------------------------------------------

    def saw_addresses(self, owners: Iterable[tuple[str, str]], at: float) -> None:
        """Pairs of address and owner, of everything that lives. Raises nothing: doubles become faults, once each."""
        held: dict[str, str] = {}
        for address, owner in owners:
            other = held.setdefault(address, owner)
            if other != owner and address not in self._doubles:
                self._doubles.add(address)
                self.faults.append(f"{at:.2f} address {address} is owned by {other} and by {owner}")

    def saw_gone(self, gone: Iterable[str], alive: Iterable[str], asked: float, told: float) -> None:
        """Addresses of tasks of the service, as a manager told between those moments."""
        living = set(alive)
        for address in living & self.gone.keys():
            # The next one may have it since just after the look before, which a manager that trails answered
            self._history.append((address, self.gone.pop(address), self._looked - TRAILS))
        for address in set(gone) - living - self.gone.keys():
            self.gone[address] = told
            self.endings.append(told)
        self._looked = asked

    def is_apart(self, node: str, begin: float, end: float) -> bool:
        return any(span.node == node and span.meets(begin, end, GRACE) for span in self.apart)

    # --- judged at the end ------------------------------------------------------------------------------------------

    def judge(self, asked: Iterable[Asked]) -> Counter[str]:
        """How many of each kind succeeded, were excused and were not; the last become faults.

        Where the machine was slow all that has a time is given more of it, and counted by itself.
        """
        counts: Counter[str] = Counter()
        endings = sorted(self.endings)
        gone: dict[str, list[tuple[float, float]]] = {}
        for address, since, until in [*self._history, *((a, since, float("inf")) for a, since in self.gone.items())]:
            gone.setdefault(address, []).append((since, until))
        for each in asked:
            if not each.error and each.found:
                if not (late := self._late(each, gone)):
                    counts[f"{each.kind} right"] += 1
                elif not self._late(each, gone, GRACE * self._slowness(each)):
                    counts[f"{each.kind} right, late on a slow machine"] += 1
                else:
                    counts[f"{each.kind} LATE"] += 1
                    self.faults.append(f"{each}; {late}")
            elif why := self._why(each, endings):
                counts[f"{each.kind} excused by {why}"] += 1
            elif why := self._why(each, endings, GRACE * (self._slowness(each) - 1)):
                counts[f"{each.kind} excused by {why}, on a slow machine"] += 1
            else:
                counts[f"{each.kind} FAILED"] += 1
                self.faults.append(str(each))
        return counts

    def _slowness(self, each: Asked) -> float:
        return self.pace.slowness(each.began - REPAIR, each.ended)

    def _late(self, each: Asked, gone: dict[str, list[tuple[float, float]]], grace: float = GRACE) -> str:
        """What a connected node led to although the managers knew, for longer than it may, that it is gone."""
        for address, since, until in ((a, *times) for a in each.found for times in gone.get(a, ())):
            if since + grace < each.began < until:
                hindered = [
                    span.end
                    for span in (*self.apart, *self.excused)
                    if span.node in ("", each.via) and span.meets(since, each.began, GRACE)
                ]
                if max(hindered, default=since) + grace < each.began:
                    return f"managers know for {each.began - since:.1f} s that {address} is gone"
        return ""

    def _why(self, each: Asked, endings: list[float], more: float = 0) -> str:
        """What a failure is excused by, with so many seconds more for everything."""
        return self._excuse(each.via, each.began, each.ended, more) or self._stale(each, endings, more)

    def _excuse(self, node: str, begin: float, end: float, more: float = 0) -> str:
        for span in self.excused:
            if span.node in ("", node) and span.meets(begin, end, more):
                return span.what
        return ""

    def _stale(self, each: Asked, endings: list[float], more: float) -> str:
        """A node on its own goes on with what it knew; it cannot know what ended since."""
        for span in self.apart:
            if span.node != each.via or not span.meets(each.began, each.ended, GRACE + more):
                continue
            place = bisect_left(endings, span.begin - GRACE)
            if place < len(endings) and endings[place] <= each.ended:
                return f"{span.what} of its node while tasks ended"
        return ""
