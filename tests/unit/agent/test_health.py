"""Docker's rules of health checks, minute by minute on a clock turned by hand."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from hivemesh.agent.health import Check, check_of, examine
from hivemesh.clock import ManualClock
from hivemesh.engine.api import EngineError, Ran
from hivemesh.model.service import HealthConfig

SECOND = 10**9
FAILED, TIMED_OUT, REFUSED = Ran(code=1, output="no answer\n"), TimeoutError(), EngineError("the engine is down")
FINE = Ran(code=0, output="")


class Container:
    """A container whose checks end as told, examined on a clock of its own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.began = self.clock.now()
        self.checks: list[tuple[float, tuple[str, ...], float]] = []  # age, command, timeout
        self.result: Ran | Exception = FINE
        self.healthy_at: list[float] = []
        self.examining: asyncio.Task[str] | None = None

    async def run(self, container: str, command: Sequence[str], timeout: float) -> Ran:
        self.checks.append((self.age, tuple(command), timeout))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    @property
    def age(self) -> float:
        return self.clock.now() - self.began

    @property
    def verdict(self) -> str | None:
        """What the last check said, once the container is unhealthy."""
        assert self.examining is not None
        return self.examining.result() if self.examining.done() else None

    async def examine(self, check: Check, *, healthy: bool = False) -> None:
        self.examining = asyncio.create_task(
            examine(
                check,
                self,
                "id",
                clock=self.clock,
                started=self.began,
                healthy=healthy,
                became_healthy=lambda: self.healthy_at.append(self.age),
            )
        )
        await self.pass_by(0)

    async def pass_by(self, seconds: float) -> None:
        """Time, second by second."""
        for step in (0.0, *(1.0 for _ in range(int(seconds)))):
            self.clock.advance(step)
            for _ in range(5):
                await asyncio.sleep(0)


@pytest.fixture
async def container() -> AsyncIterator[Container]:
    made = Container()
    yield made
    if made.examining is not None:
        made.examining.cancel()
        await asyncio.gather(made.examining, return_exceptions=True)


CHECK = Check(command=("ask",), interval=10, timeout=2, start_period=0, start_interval=1, retries=3)


async def test_container_is_healthy_once_a_check_succeeds(container: Container) -> None:
    await container.examine(CHECK)
    await container.pass_by(9)
    assert container.checks == []  # the first one comes after an interval
    await container.pass_by(16)
    assert container.checks == [(10, ("ask",), 2), (20, ("ask",), 2)]
    assert container.healthy_at == [10]  # told once
    assert container.verdict is None


async def test_container_is_unhealthy_after_failures_in_a_row(container: Container) -> None:
    await container.examine(CHECK)
    await container.pass_by(10)
    for result in (FAILED, TIMED_OUT, FINE, FAILED, TIMED_OUT):
        container.result = result
        await container.pass_by(10)
    assert container.verdict is None  # a success began anew
    container.result = FAILED
    await container.pass_by(10)
    assert container.verdict == "no answer"
    assert container.age == 70


async def test_container_that_was_never_healthy_is_given_up(container: Container) -> None:
    container.result = TIMED_OUT
    await container.examine(CHECK)
    await container.pass_by(29)
    assert container.verdict is None
    await container.pass_by(1)
    assert container.verdict == "Health check exceeded timeout (2s)"
    assert container.healthy_at == []


async def test_failures_of_the_start_period_do_not_count(container: Container) -> None:
    container.result = FAILED
    await container.examine(Check(command=("ask",), interval=10, start_period=5, start_interval=2, retries=1))
    await container.pass_by(5)
    assert [age for age, *_ in container.checks] == [2, 4]  # more often than later
    assert container.verdict is None
    await container.pass_by(1)  # the pause was chosen within the start period, its check comes after
    assert container.verdict == "no answer"


async def test_failures_count_from_the_first_success_on(container: Container) -> None:
    await container.examine(Check(command=("ask",), interval=3, start_period=100, start_interval=1, retries=2))
    await container.pass_by(1)
    assert container.healthy_at == [1]
    container.result = FAILED
    await container.pass_by(6)
    assert [age for age, *_ in container.checks] == [1, 4, 7]
    assert container.verdict == "no answer"


async def test_healthy_container_survives_an_engine_in_trouble(container: Container) -> None:
    container.result = REFUSED
    await container.examine(CHECK, healthy=True)
    await container.pass_by(100)
    assert len(container.checks) == 10
    assert container.verdict is None


async def test_adopted_container_is_checked_as_what_it_was(container: Container) -> None:
    container.result = FAILED
    await container.examine(Check(command=("ask",), interval=3, start_period=100, start_interval=1), healthy=True)
    await container.pass_by(9)
    assert container.verdict == "no answer"  # no start period for what was healthy already
    assert container.healthy_at == []


def test_check_of_the_image_fills_in_what_the_service_leaves_open() -> None:
    image = HealthConfig(test=("CMD-SHELL", "ask || exit 1"), interval=5 * SECOND, retries=9)
    assert check_of(None, None) is None
    assert check_of(HealthConfig(), HealthConfig()) is None
    assert check_of(HealthConfig(interval=SECOND), None) is None  # nothing to run
    assert check_of(HealthConfig(test=("NONE",)), image) is None
    assert check_of(None, image) == Check(
        command=("/bin/sh", "-c", "ask || exit 1"), interval=5, timeout=30, start_period=0, start_interval=5, retries=9
    )
    own = HealthConfig(test=("CMD", "look", "-x"), timeout=SECOND // 2, start_period=2 * SECOND)
    assert check_of(own, image) == Check(
        command=("look", "-x"), interval=5, timeout=0.5, start_period=2, start_interval=5, retries=9
    )
