"""The whole agent below the session, on a machine of its own: network and mount namespaces made for this test."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

INSIDE = Path(__file__).parent / "inside"
PREPARE = 'mount -t tmpfs tmpfs /run && exec "$@"'


@pytest.mark.parametrize("cases", ["worker_cases.py", "names_cases.py", "secret_cases.py", "firewall_cases.py"])
def test_worker_cases_hold_on_a_machine_of_their_own(cases: str) -> None:
    command = [
        "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh",
        sys.executable, "-m", "pytest", str(INSIDE / cases), "-p", "no:cacheprovider",
        "--basetemp=/run/cases", "-rA",  # short: socket paths are limited to 107 bytes
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
