"""A task without a health check is used once it listens, and stopped once nobody is at its door."""

import asyncio

import pytest

from hivemesh.agent.readiness import (
    DELIVERY_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    LISTEN_TIMEOUT,
    ON_THE_WAY,
    Doors,
    doors_of,
    until_delivered,
    until_nobody_calls,
    until_open,
)
from hivemesh.clock import ManualClock
from hivemesh.engine.api import ImageFacts
from hivemesh.model.addr import MAC
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.service import ContainerSpec, HealthConfig, PortConfig, TaskSpec
from hivemesh.model.task import Attachment, Task

WEB, TLS, DNS = ("tcp", 80), ("tcp", 443), ("udp", 53)
PLACE = Attachment(endpoint_id=EndpointID("e"), network_id=NetworkID("n"), addresses=(), mac=MAC("02:42:0a:00:00:01"))
SERVER = ImageFacts(exposed=(WEB, TLS))


def task(*ports: PortConfig, networks: int = 1, **container: object) -> Task:
    spec = TaskSpec(container_spec=ContainerSpec(image="web", **container))  # type: ignore[arg-type]
    return Task(
        id=TaskID("t"),
        service_id=ServiceID("s"),
        service_name="web",
        slot=1,
        spec=spec,
        ports=ports,
        attachments=(PLACE,) * networks,
    )


def port(target: int, protocol: str = "tcp", mode: str = "ingress") -> PortConfig:
    return PortConfig(target_port=target, published_port=8000, protocol=protocol, publish_mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("it", "image", "doors"),
    [
        pytest.param(task(port(80), port(443)), ImageFacts(), Doors(all=frozenset({WEB, TLS})), id="published"),
        pytest.param(task(port(53, "udp", "host")), SERVER, Doors(all=frozenset({DNS})), id="host mode"),
        pytest.param(task(port(9, "sctp"), networks=0), SERVER, Doors(), id="nobody lists SCTP's ports"),
        pytest.param(task(), SERVER, Doors(any=frozenset({WEB, TLS})), id="exposed"),
        pytest.param(task(networks=0), SERVER, Doors(), id="on no network"),
        pytest.param(task(), ImageFacts(), Doors(), id="nothing known"),
        pytest.param(task(args=("sleep", "9")), SERVER, Doors(), id="another command"),
        pytest.param(task(command=("sleep",)), SERVER, Doors(), id="another entrypoint"),
        pytest.param(
            task(args=("--fast",)),
            ImageFacts(exposed=(WEB,), entrypoint=True),
            Doors(any=frozenset({WEB})),
            id="options of the image's own program",
        ),
        pytest.param(task(port(80), healthcheck=HealthConfig(test=("NONE",))), SERVER, Doors(), id="no check wanted"),
    ],
)
def test_task_is_expected_to_open_its_doors(it: Task, image: ImageFacts, doors: Doors) -> None:
    assert doors_of(it, image) == doors


@pytest.mark.parametrize(
    ("doors", "found", "are_open"),
    [
        (Doors(all=frozenset({WEB, TLS})), {WEB}, False),
        (Doors(all=frozenset({WEB, TLS})), {WEB, TLS, DNS}, True),
        (Doors(any=frozenset({WEB, TLS})), {DNS}, False),
        (Doors(any=frozenset({WEB, TLS})), {TLS}, True),
    ],
)
def test_doors_are_open_when_all_published_ones_or_an_exposed_one_is(
    doors: Doors, found: set[tuple[str, int]], are_open: bool
) -> None:
    assert doors.are_open(frozenset(found)) is are_open


async def _turn(clock: ManualClock, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        clock.advance(0.1)
        for _ in range(3):
            await asyncio.sleep(0)


async def test_wait_ends_when_the_last_door_opens() -> None:
    clock, found = ManualClock(), {WEB}
    waiting = asyncio.create_task(until_open(Doors(all=frozenset({WEB, TLS})), lambda: frozenset(found), clock))
    await _turn(clock, 2)
    assert not waiting.done()
    found.add(TLS)
    await _turn(clock, 0.1)
    assert await waiting


async def test_wait_for_a_door_that_stays_closed_has_an_end() -> None:
    clock = ManualClock()
    waiting = asyncio.create_task(until_open(Doors(all=frozenset({WEB})), frozenset, clock))
    await _turn(clock, LISTEN_TIMEOUT - 0.5)
    assert not waiting.done()
    await _turn(clock, 1)
    assert not await waiting


def test_doors_are_named_for_people() -> None:
    assert str(Doors(all=frozenset({WEB, DNS}))) == "80/tcp, 53/udp"
    assert str(Doors(any=frozenset({TLS, WEB}))) == "80/tcp or 443/tcp"


class Leaping:
    """A clock that sleeps in no time."""

    def __init__(self) -> None:
        self.slept = 0.0

    def now(self) -> float:
        return -self.slept  # somebody sets it back all the time

    def steady(self) -> float:
        return self.slept

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.mark.parametrize(
    ("called_until", "waited"),
    [(0.0, ON_THE_WAY), (ON_THE_WAY + 0.5, ON_THE_WAY + 0.5), (99.0, ON_THE_WAY + HANDSHAKE_TIMEOUT)],
    ids=["nobody comes", "somebody comes in", "somebody stays outside"],
)
async def test_stop_waits_for_who_is_on_the_way_but_not_for_ever(called_until: float, waited: float) -> None:
    clock = Leaping()
    await until_nobody_calls(lambda: clock.slept < called_until - 1e-9, clock)
    assert clock.slept == pytest.approx(waited, abs=0.011)


@pytest.mark.parametrize(("heard", "waited"), [(0.0, 0.0), (0.3, 0.3), (99.0, DELIVERY_TIMEOUT)])
async def test_namespace_waits_for_last_words_but_not_for_ever(heard: float, waited: float) -> None:
    clock = Leaping()
    await until_delivered(lambda: clock.slept < heard - 1e-9, clock)
    assert clock.slept == pytest.approx(waited, abs=0.011)
