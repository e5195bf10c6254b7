"""The whole agent below the session, on a machine of its own: network and mount namespaces made for this test."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

CASES = Path(__file__).parent / "inside" / "worker_cases.py"
PREPARE = 'mount -t tmpfs tmpfs /run && exec "$@"'


def test_worker_cases_hold_on_a_machine_of_their_own(tmp_path: Path) -> None:
    command = [
        "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh",
        sys.executable, "-m", "pytest", str(CASES), "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inside", "-rA",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
