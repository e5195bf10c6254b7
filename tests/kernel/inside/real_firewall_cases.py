"""Run by test_real_firewalls.py on a machine of its own where ufw and firewalld are installed: they run beside us."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from firewall_cases import client, passes, ruleset
from worker_cases import Machine, a_task, machine, running, sh, underlay

__all__ = ["client", "machine", "underlay"]  # fixtures

BUS = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
"""
AWAIT = "for i in $(seq 100); do firewall-cmd --state && exit; sleep 0.1; done; exit 1"


@pytest.fixture(scope="module")
def bus() -> Iterator[None]:
    """The system's bus, by which firewalld is spoken to."""
    folder = Path("/run/dbus")
    folder.mkdir()
    (folder / "conf").write_text(BUS)
    process = subprocess.Popen(["dbus-daemon", "--config-file=/run/dbus/conf", "--nofork"])
    yield
    process.kill()
    process.wait()


@pytest.fixture
def neighbor() -> Iterator[None]:
    """A server on this machine that no firewall was told of."""
    process = subprocess.Popen(["busybox", "httpd", "-f", "-p", "8077", "-h", "/proc/sys/kernel"])
    yield
    process.kill()
    process.wait()


def is_shut() -> None:
    for address in ("198.51.100.11", "[fd00:99::11]"):
        sh(f"! ip netns exec client curl -sfm 0.3 http://{address}:8077/hostname")


def theirs() -> list[str]:
    return [line for line in ruleset() if "hivemesh" not in line]


async def beside(machine: Machine, enable: str, reload: str, disable: str) -> None:
    task = a_task(1)
    async with machine.worker() as worker:
        await running(machine, worker, task)
        await passes(task.id[:12])
        await asyncio.to_thread(sh, enable)
        before = theirs()
        await passes(task.id[:12])
        assert theirs() == before
        is_shut()
        for _ in range(2):
            await asyncio.to_thread(sh, reload)
            await passes(task.id[:12])
            assert theirs() == before
            assert await worker.equal_to_plan() == []
            is_shut()
        settled = ruleset()
        await asyncio.sleep(1.2)
        assert ruleset() == settled
        assert 0 < sum("hivemesh" in line for line in settled) <= 4
        await asyncio.to_thread(sh, disable)
        await passes(task.id[:12])
        await asyncio.to_thread(sh, enable)
        await passes(task.id[:12])
    await machine.clean()
    assert [line for line in ruleset() if "hivemesh" in line] == []
    assert theirs() == before
    await asyncio.to_thread(sh, disable)
    sh("nft flush ruleset")  # what they leave when they stop


async def test_ufw_is_enabled_reloaded_and_disabled_beside_us(machine: Machine, client: None, neighbor: None) -> None:
    # its first reload puts two rules for IPv6 there twice, also without us
    await beside(machine, "ufw --force enable; ufw reload", "ufw reload", "ufw disable")


async def test_firewalld_is_started_reloaded_and_stopped_beside_us(
    machine: Machine, client: None, neighbor: None, bus: None
) -> None:
    assert os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") is None
    start = f"setsid --fork firewalld --nofork --nopid --log-target file >/dev/null 2>&1 </dev/null; {AWAIT}"
    stop = (
        "kill $(ps ax | awk '/[s]bin\\/firewalld/ {print $1}'); while nft list table inet firewalld; do sleep 0.1; done"
    )
    await beside(machine, start, "firewall-cmd --reload", f"{stop} >/dev/null 2>&1")
