"""Labs for tests: one that all share, reset between tests, and fresh ones for tests that break things."""

import os
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from hivemesh.lab.lab import Lab, LabSettings, labs

_numbers = count()


def _new_name() -> str:
    """Tells whose it is, so that the next run removes what a killed one left, and no other run's."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture(scope="session", autouse=True)
def _no_labs_of_dead_runs() -> None:
    for name in labs():
        owner = re.fullmatch(r"t(\d+)-\w+", name)
        if owner and not Path("/proc", owner[1]).exists():
            Lab(name).down()


@pytest.fixture(scope="session")
def _shared_lab() -> Iterator[Lab]:
    lab = Lab(_new_name(), LabSettings())
    lab.up()
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def lab(_shared_lab: Lab) -> Lab:
    """Three nodes in a swarm, on Podman, with no service; leave its machines and daemons as they are."""
    _shared_lab.reset()
    return _shared_lab


@pytest.fixture
def fresh_lab() -> Iterator[Callable[[LabSettings], Lab]]:
    """Makes labs of this test's own, which it may break; they are removed when it ends."""
    made: list[Lab] = []

    def make(settings: LabSettings) -> Lab:
        lab = Lab(_new_name(), settings)
        made.append(lab)
        lab.up()
        return lab

    try:
        yield make
    finally:
        for lab in made:
            lab.down()
