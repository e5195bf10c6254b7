"""IPVS on a kernel that has it, and what users of one that has none see."""

import subprocess
import sys
from pathlib import Path

import pytest

from hivemesh.kernel import ipvs

pytestmark = pytest.mark.kernel

INSIDE = Path(__file__).parent / "inside"
PREPARE = 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'
HAVE = pytest.mark.skipif(bool(ipvs.missing()), reason="this kernel has no IPVS; `make test-guest` runs this")
LACK = pytest.mark.skipif(not ipvs.missing(), reason="this kernel has IPVS")


@pytest.fixture
def private() -> list[str]:
    """How to run a command on a machine of its own."""
    return ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh"]


@HAVE
def test_cases_hold_on_a_kernel_with_ipvs(private: list[str], tmp_path: Path) -> None:
    cases = ["-m", "pytest", str(INSIDE / "ipvs_cases.py"), "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inside"]
    done = subprocess.run([*private, sys.executable, *cases], capture_output=True, text=True, timeout=240)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0


@LACK
def test_daemon_told_to_use_ipvs_says_in_one_line_that_there_is_none(private: list[str], tmp_path: Path) -> None:
    daemon = [str(Path(sys.executable).parent / "hivemeshd"), "--balancer", "ipvs", "--log-level", "error"]
    places = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([*private, *daemon, *places], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {ipvs.MISSING}; or start without --balancer ipvs\n"
    assert list(tmp_path.iterdir()) == []


_APPLY = """
from socket import AF_INET
from ipaddress import ip_address
from hivemesh.dataplane.apply import Applier
from hivemesh.dataplane.balancer.ipvs import SYSCTLS
from hivemesh.kernel.api import Destination, NamespacePlan, VirtualService
import sys
backends = (Destination(address=ip_address("10.0.0.1"), weight=1),)
service = VirtualService(family=AF_INET, mark=1, scheduler="wrr", destinations=backends)
plan = NamespacePlan(namespace="sandbox", mark="hivemesh/sandbox/t1", sysctls=SYSCTLS, ipvs=(service,))
print("failed", *Applier().ensure(plan).failed)
print("lacks", *Applier().differences(plan))
print("pyroute2" in sys.modules)
"""


@LACK
def test_plan_that_needs_ipvs_fails_with_one_line(private: list[str]) -> None:
    done = subprocess.run([*private, sys.executable, "-c", _APPLY], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [f"failed {ipvs.MISSING}", f"lacks sandbox: {ipvs.MISSING}", "False"], done
