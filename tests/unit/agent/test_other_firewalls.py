"""When other firewalls are looked at again."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

import pytest

from hivemesh.agent.firewalls import AGAIN, PERIOD, Firewalls
from hivemesh.clock import ManualClock
from hivemesh.model.errors import Unavailable


class Steps:
    """A firewall that is reloaded in steps; each look but the first tells what it had to put back, or fails."""

    def __init__(self) -> None:
        self.clock = ManualClock(0.0)
        self.outcomes: list[list[str] | Unavailable] = []
        self.looks: list[float] = []
        self.restored: list[str] = []

    async def look(self, bridges: Collection[str]) -> Sequence[str]:
        self.looks.append(round(self.clock.now(), 3))
        found = self.outcomes.pop(0) if self.outcomes else []
        if isinstance(found, Unavailable):
            raise found
        return found

    async def after(self, seconds: float) -> list[float]:
        """When it was looked at, with that much time in small steps."""
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return self.looks


@pytest.fixture
async def steps() -> AsyncIterator[Steps]:
    made = Steps()
    generation = iter(range(10**9))
    firewalls = Firewalls(
        lambda: ["hm_gwbridge"], made.look, made.clock, made.restored.extend, state=lambda: next(generation)
    )
    running = asyncio.create_task(firewalls.run())
    await asyncio.sleep(0)
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reload_that_comes_in_steps_is_followed_by_looks_at_once(steps: Steps) -> None:
    steps.outcomes = [["ip"], ["ip6"], [], ["ip"]]
    looks = await steps.after(2 * PERIOD + 6 * AGAIN)
    assert looks[2] - looks[1] < PERIOD
    assert looks[3] - looks[2] < PERIOD
    assert looks[4] - looks[3] >= PERIOD


async def test_whoever_fights_us_is_looked_at_no_more_than_before(steps: Steps) -> None:
    steps.outcomes = [["ip"]] * 100
    looks = await steps.after(20)
    assert len(looks) <= 20 + 4
    assert looks[-1] - looks[-2] >= PERIOD


async def test_an_error_is_tried_again_at_once_and_then_patiently(steps: Steps) -> None:
    steps.outcomes = [Unavailable("no such chain")] * 50
    looks = await steps.after(5)
    assert looks[2] - looks[1] < PERIOD
    assert looks[3] - looks[2] >= PERIOD
