"""The resolver process, on a machine of its own: network, mount and process namespaces that end with the test."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

INSIDE = Path(__file__).parent / "inside"
PREPARE = 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'


def test_resolver_holds_on_a_machine_of_its_own(tmp_path: Path) -> None:
    command = [
        "unshare", "--net", "--mount", "--propagation", "private",
        "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", PREPARE, "sh",
        sys.executable, "-m", "pytest", str(INSIDE / "resolver_cases.py"), "-p", "no:cacheprovider",
        f"--basetemp={tmp_path}/inside",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
