"""An agent renews its certificate in time, and keeps trying."""

import asyncio
import errno
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from hivemesh.agent import session as session_module
from hivemesh.agent.identity import Facts, Identity, create
from hivemesh.agent.session import Session
from hivemesh.clock import ManualClock
from hivemesh.model.errors import Unavailable
from hivemesh.model.ids import ClusterID, NodeID
from hivemesh.model.node import NodeDescription
from hivemesh.pki import Authority, make_request

HOUR = 3600.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(float(int(time.time())))


@pytest.fixture
def authority(clock: ManualClock) -> Authority:
    return Authority.create(clock.now())


def sign(authority: Authority, now: float) -> tuple[str, str]:
    request = make_request()
    certificate = authority.sign(request.csr, node_id="n", cluster_id="c", role="worker", now=now, lifetime=10 * HOUR)
    return certificate, request.key


@pytest.fixture
def identity(tmp_path: Path, clock: ManualClock, authority: Authority) -> Identity:
    certificate, key = sign(authority, clock.now())
    facts = Facts(
        node_id=NodeID("n"),
        cluster_id=ClusterID("c"),
        role="worker",
        addr=ip_address("127.0.0.1"),
        vtep=ip_address("127.0.0.1"),
        listen="",
        managers=("127.0.0.1:9",),
    )
    return create(tmp_path, facts, ca=authority.certificate, certificate=certificate, key=key)


async def describe() -> NodeDescription:
    return NodeDescription()


async def pass_time(clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("refusal", [Unavailable("no manager"), OSError(errno.ENOSPC, "No space left on device")])
async def test_certificate_is_renewed_between_half_and_four_fifths_of_its_life(
    identity: Identity,
    clock: ManualClock,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Exception,
) -> None:
    renewed: list[float] = []

    async def renew(known: Identity) -> Identity:
        renewed.append(clock.now())
        if len(renewed) == 1:
            raise refusal
        known.renew(*sign(authority, clock.now()))
        return known

    monkeypatch.setattr(session_module, "renew", renew)
    start = clock.now()
    session = Session(identity, assign=lambda view, revision: None, describe=describe, clock=clock)
    running: asyncio.Task[Any] = asyncio.create_task(session.run())
    try:
        await pass_time(clock, 4.9 * HOUR)
        assert renewed == []
        await pass_time(clock, 3.2 * HOUR)
        assert len(renewed) == 1  # and refused
        await pass_time(clock, HOUR)
        assert len(renewed) == 2
        assert identity.validity()[1] == clock.now() + 10 * HOUR
        assert clock.now() - start < 10 * HOUR
        await pass_time(clock, 4.9 * HOUR)
        assert len(renewed) == 2
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_expired_certificate_is_said_to_be(identity: Identity, clock: ManualClock) -> None:
    clock.advance(11 * HOUR)
    session = Session(identity, assign=lambda view, revision: None, describe=describe, clock=clock)
    running: asyncio.Task[Any] = asyncio.create_task(session.run())
    try:
        await asyncio.sleep(0.05)
        assert "expired" in session.error
        assert session.state == "connecting"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
