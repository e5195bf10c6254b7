"""What holds for all tests."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivemesh.kernel import nft, rtnl
from hivemesh.kernel.api import HOST
from labs import FAILED, keep_logs

KEPT = Path(__file__).parents[1] / ".test" / "logs"


def pytest_configure() -> None:
    """Told to end, we end as on Ctrl-C: with every fixture torn down."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Close the sockets on this machine itself that code under test keeps for its process's life."""
    rtnl.forget(HOST)
    nft.forget(HOST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What daemons said until a test failed is kept in .test/logs."""
    report = yield
    if report.failed:
        item.session.stash[FAILED] = True
        keep_logs(KEPT / re.sub(r"[^\w.-]+", "-", item.nodeid.rpartition("/")[2])[:150])
    return report
