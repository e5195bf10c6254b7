"""One lab for all conformance tests."""

import shutil
from collections.abc import Iterator

import pytest
from conform_rig import Board, conformance_board


@pytest.fixture(scope="session")
def board() -> Iterator[Board]:
    if shutil.which("docker") is None:
        pytest.skip("no docker command here")
    with conformance_board() as board:
        yield board
