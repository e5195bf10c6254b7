"""The kernel layer and the applier, on a machine of their own: network and mount namespaces that end with the test."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

INSIDE = Path(__file__).parent / "inside"
PREPARE = 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'


@pytest.mark.parametrize(
    "cases", ["netns_cases.py", "apply_cases.py", "monitor_cases.py", "conntrack_cases.py", "picture_cases.py"]
)
def test_cases_hold_on_a_machine_of_their_own(cases: str, tmp_path: Path) -> None:
    command = [
        "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh",
        sys.executable, "-m", "pytest", str(INSIDE / cases), "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inside",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
