"""Labs for tests: one that all share, reset between tests, and fresh ones for tests that break things."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hivemesh.lab.lab import Lab, LabSettings, labs
from labs import SharedLab, a_lab


@pytest.fixture(scope="session", autouse=True)
def _no_labs_of_dead_runs() -> None:
    for name in labs():
        owner = re.fullmatch(r"t(\d+)-\w+", name)
        if owner and not Path("/proc", owner[1]).exists():
            Lab(name).down()


@pytest.fixture(scope="session")
def shared_lab(request: pytest.FixtureRequest) -> Iterator[SharedLab]:
    shared = SharedLab(request.session)
    try:
        yield shared
    finally:
        shared.close()


@pytest.fixture
def lab(shared_lab: SharedLab) -> Lab:
    """Three nodes in a swarm, on Podman, with no service; leave its machines and daemons as they are."""
    lab = shared_lab.get()
    lab.reset()
    return lab


@pytest.fixture
def fresh_lab() -> Iterator[Callable[[LabSettings], Lab]]:
    """Makes labs of this test's own, which it may break; they are removed when it ends."""
    with ExitStack() as made:
        yield lambda settings: made.enter_context(a_lab(settings))
