"""Labs for tests."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from hivemesh.lab.lab import Lab, LabSettings

_numbers = count()
_alive: list[Lab] = []

FAILED = pytest.StashKey[bool]()
"""Of the session: whether a test has failed since the shared lab was made."""


@contextmanager
def a_lab(settings: LabSettings | None = None) -> Iterator[Lab]:
    """A lab that is gone afterwards, also when it did not come up.

    Its name tells whose it is, so that the next run removes what a killed one left, and no other run's.
    """
    lab = Lab(f"t{os.getpid()}-{next(_numbers)}", settings or LabSettings())
    _alive.append(lab)
    try:
        lab.up()
        yield lab
    finally:
        _alive.remove(lab)
        lab.down()


def keep_logs(folder: Path) -> None:
    """What the daemons of all labs have said so far."""
    for lab in _alive:
        for node in lab.nodes:
            with contextlib.suppress(OSError):  # it did not come so far
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(node.log, folder / f"{lab.name}-{node.name}.log")


class SharedLab:
    """The one lab, or its successor once a test that failed may have left it in disorder."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._made = ExitStack()
        self._lab: Lab | None = None

    def get(self) -> Lab:
        if self._session.stash.get(FAILED, False) or self._lab is None:
            self._session.stash[FAILED] = False
            self.close()
            self._lab = self._made.enter_context(a_lab())
        return self._lab

    def close(self) -> None:
        self._made.close()
