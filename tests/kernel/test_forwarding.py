"""Questions for other name servers, on a machine of their own: network and mount namespaces that end with the test."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

CASES = Path(__file__).parent / "inside/forward_cases.py"
PREPARE = 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'


def test_forwarding_cases_hold_on_a_machine_of_their_own(tmp_path: Path) -> None:
    command = [
        "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh",
        sys.executable, "-m", "pytest", str(CASES), "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inside",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
