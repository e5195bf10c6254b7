"""ufw and firewalld as Debian has them, running beside us on a machine of its own; here only their rules are text.

Neither is installed: their packages are laid over `/etc` and `/usr` of that machine's own mounts.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.soak]

INSIDE = Path(__file__).parent / "inside"
PACKAGES = ("ufw", "firewalld", "python3-firewall", "python3-nftables", "gir1.2-nm-1.0", "libnm0")
NEEDED = "dbus-daemon --version && /usr/bin/python3 -c 'import dbus, gi'"
PREPARE = """
set -e
packages=$1; shift
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/laid /run/over
for package in "$packages"/*.deb; do dpkg-deb --extract "$package" /run/laid; done
mkdir -p /run/laid/etc/ufw
cp -a /run/laid/lib/. /run/laid/usr/lib/
cp /run/laid/usr/share/ufw/iptables/*.rules /run/laid/usr/share/ufw/ufw.conf /run/laid/etc/ufw/
for folder in etc usr; do
    mkdir /run/over/$folder /run/over/$folder.work
    layers=lowerdir=/run/laid/$folder:/$folder,upperdir=/run/over/$folder,workdir=/run/over/$folder.work
    mount -t overlay -o "$layers" over /$folder
done
exec "$@"
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    if subprocess.run(["sh", "-c", NEEDED], capture_output=True, check=False).returncode:
        pytest.skip("dbus, python3-dbus and python3-gi are not installed")
    done = subprocess.run(
        ["apt-get", "--quiet", "download", *PACKAGES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the packages cannot be had: {done.stderr.strip()[-300:]}")
    return tmp_path


def test_firewalls_that_run_let_ours_pass_and_keep_theirs(packages: Path) -> None:
    command = [
        "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private",
        "bash", "-c", PREPARE, "bash", str(packages),
        sys.executable, "-m", "pytest", str(INSIDE / "real_firewall_cases.py"), "-p", "no:cacheprovider",
        "--basetemp=/run/cases", "-rA",  # short: socket paths are limited to 107 bytes
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0
