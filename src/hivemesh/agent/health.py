"""Whether a container is healthy: Docker's rules, for checks that the engine runs and the agent times.

A container is starting until a check succeeds. From then on, or from the end of the start period, each failure counts;
as many as `retries` in a row make it unhealthy, and one success begins anew.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemesh.clock import Clock
from hivemesh.engine.api import Ran
from hivemesh.model.errors import HivemeshError
from hivemesh.model.service import HealthConfig, Nanoseconds

log = logging.getLogger("hivemesh.health")

INTERVAL, TIMEOUT, START_INTERVAL, RETRIES = 30.0, 30.0, 5.0, 3
"""Docker's defaults, in seconds and failures; there is no start period by default."""
SHELL = ("/bin/sh", "-c")


class Runner(Protocol):
    """Of an `Engine`, what a check needs."""

    async def run(self, container: str, command: Sequence[str], timeout: float) -> Ran: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What to run and when; times in seconds."""

    command: tuple[str, ...]
    interval: float = INTERVAL
    timeout: float = TIMEOUT
    start_period: float = 0.0
    start_interval: float = START_INTERVAL
    retries: int = RETRIES


def check_of(wanted: HealthConfig | None, of_image: HealthConfig | None) -> Check | None:
    """The check of a container: each field as the service says, else as its image does, else Docker's default."""
    wanted, of_image = wanted or HealthConfig(), of_image or HealthConfig()
    command: tuple[str, ...]
    match wanted.test or of_image.test:
        case ("CMD", first, *more):
            command = (first, *more)
        case ("CMD-SHELL", line):
            command = (*SHELL, line)
        case _:  # nothing, or NONE
            return None

    def seconds(own: Nanoseconds, image: Nanoseconds, default: float) -> float:
        return (own or image) / 1e9 or default

    return Check(
        command=command,
        interval=seconds(wanted.interval, of_image.interval, INTERVAL),
        timeout=seconds(wanted.timeout, of_image.timeout, TIMEOUT),
        start_period=seconds(wanted.start_period, of_image.start_period, 0.0),
        start_interval=seconds(wanted.start_interval, of_image.start_interval, START_INTERVAL),
        retries=wanted.retries or of_image.retries or RETRIES,
    )


class Health:
    """What the checks of one container add up to."""

    def __init__(self, check: Check, *, healthy: bool = False) -> None:
        """`healthy` when it was found so by an earlier daemon."""
        self.healthy = healthy
        self._check = check
        self._failures = 0

    @property
    def unhealthy(self) -> bool:
        return self._failures >= self._check.retries

    def pause(self, age: float) -> float:
        """Seconds until the next check of a container that started `age` seconds ago."""
        return self._check.start_interval if self._starting(age) else self._check.interval

    def observe(self, succeeded: bool, age: float) -> None:
        """A check that began when the container was `age` seconds old."""
        if succeeded:
            self.healthy, self._failures = True, 0
        elif not self._starting(age):
            self._failures += 1

    def _starting(self, age: float) -> bool:
        return not self.healthy and age < self._check.start_period


async def examine(
    check: Check,
    engine: Runner,
    container: str,
    *,
    clock: Clock,
    started: float,
    healthy: bool,
    became_healthy: Callable[[], None],
) -> str:
    """Check again and again until the container is unhealthy: what the last check said. Cancelling is how else to end.

    `started` is the container's start in Unix seconds, `healthy` what is known of it already.
    """
    health = Health(check, healthy=healthy)
    while True:
        await clock.sleep(health.pause(clock.now() - started))
        age, was_healthy = clock.now() - started, health.healthy
        try:
            ran = await engine.run(container, check.command, check.timeout)
            succeeded, said = ran.code == 0, ran.output
        except TimeoutError:
            succeeded, said = False, f"Health check exceeded timeout ({check.timeout:g}s)"
        except HivemeshError as error:
            if was_healthy:  # an engine in trouble is no reason to end what runs well
                log.warning("cannot check the health of container %s: %s", container[:12], error)
                continue
            succeeded, said = False, str(error)
        health.observe(succeeded, age)
        if health.unhealthy:
            return said.strip()
        if health.healthy and not was_healthy:
            became_healthy()
