"""Leases of gateway addresses and open host ports."""

import errno
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path

import pytest

from hivemesh.agent.leases import HOST_PORTS, Leases
from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.model.errors import Exhausted, Unavailable
from hivemesh.model.ids import TaskID
from hivemesh.model.service import PortConfig


def facts(gateway: str = "172.18.0.1/16") -> HostFacts:
    return HostFacts(
        vtep=ip_address("192.0.2.1"),
        vtep_mtu=1500,
        node_v4=None,
        node_v6=None,
        gateway4=IPv4Interface(gateway),
        gateway6=IPv6Interface("fd00:1::1/64"),
    )


def test_each_task_has_its_own_addresses_after_the_sandbox_of_the_mesh(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases.json")
    first, second = leases.acquire(TaskID("a"), facts()), leases.acquire(TaskID("b"), facts())
    assert (str(first.v4), str(first.v6)) == ("172.18.0.3/16", "fd00:1::3/64")
    assert (str(second.v4), str(second.v6)) == ("172.18.0.4/16", "fd00:1::4/64")
    assert leases.acquire(TaskID("a"), facts()) == first


def test_restarted_node_gives_what_it_gave_before(tmp_path: Path) -> None:
    before = Leases(tmp_path / "leases.json")
    leases = [before.acquire(TaskID(name), facts()) for name in "abc"]
    before.release(TaskID("b"))
    after = Leases(tmp_path / "leases.json")
    assert after.acquire(TaskID("c"), facts()) == leases[2]
    assert after.acquire(TaskID("a"), facts()) == leases[0]
    assert str(after.acquire(TaskID("d"), facts()).v4) == "172.18.0.6/16"  # not b's: it was in use a moment ago


def test_small_bridge_runs_out_and_then_reuses_the_oldest(tmp_path: Path) -> None:
    small = facts("10.1.1.1/29")
    leases = Leases(tmp_path / "leases.json")
    given = [leases.acquire(TaskID(str(n)), small).v4 for n in range(4)]
    assert [str(v4.ip) for v4 in given] == ["10.1.1.3", "10.1.1.4", "10.1.1.5", "10.1.1.6"]
    with pytest.raises(Exhausted, match=r"10\.1\.1\.0/29"):
        leases.acquire(TaskID("more"), small)
    leases.release(TaskID("1"))
    leases.release(TaskID("0"))
    assert str(leases.acquire(TaskID("more"), small).v4.ip) == "10.1.1.3"


def test_torn_file_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "leases.json").write_text('{"next": 7, "lea')
    assert str(Leases(tmp_path / "leases.json").acquire(TaskID("a"), facts()).v4) == "172.18.0.3/16"


def test_what_no_task_holds_is_given_back(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases.json")
    kept = leases.acquire(TaskID("a"), facts())
    leases.acquire(TaskID("b"), facts())
    leases.keep({TaskID("a")})
    assert leases.acquire(TaskID("a"), facts()) == kept
    assert str(leases.acquire(TaskID("b"), facts()).v4) == "172.18.0.5/16"


def test_open_host_ports_are_chosen_once(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases.json")
    asked = (
        PortConfig(target_port=80, published_port=8080, publish_mode="host"),
        PortConfig(target_port=80, publish_mode="host"),
        PortConfig(target_port=90, published_port=9090),
    )
    leases.acquire(TaskID("a"), facts())
    leases.acquire(TaskID("b"), facts())
    chosen = leases.host_ports(TaskID("a"), asked)
    assert [port.published_port for port in chosen] == [8080, HOST_PORTS.start]
    assert leases.host_ports(TaskID("b"), asked)[1].published_port == HOST_PORTS.start + 1
    again = Leases(tmp_path / "leases.json")
    assert again.host_ports(TaskID("a"), asked) == chosen


def test_open_host_port_is_none_that_somebody_uses_and_one_target_may_have_two(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases.json")
    first = HOST_PORTS.start
    busy = {("tcp", first), ("udp", first + 1), ("tcp", first + 2)}
    asked = (PortConfig(target_port=80, publish_mode="host"),) * 2
    leases.acquire(TaskID("a"), facts())
    chosen = leases.host_ports(TaskID("a"), asked, lambda: busy)
    assert [port.published_port for port in chosen] == [first + 1, first + 3]
    assert leases.host_ports(TaskID("a"), asked, lambda: {("tcp", first + 1)}) == chosen, "its own are no trouble"


def test_full_disk_grants_nothing_and_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = Leases(tmp_path / "leases.json")
    first = leases.acquire(TaskID("a"), facts())

    def refuse(*_: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", refuse)
        with pytest.raises(Unavailable, match=r"leases\.json: No space left on device; nothing was changed: free some"):
            leases.acquire(TaskID("b"), facts())
        with pytest.raises(Unavailable, match="No space left"):
            leases.host_ports(TaskID("a"), [PortConfig(target_port=80, publish_mode="host")])
        assert leases.acquire(TaskID("a"), facts()) == first
        leases.release(TaskID("a"))
    second = leases.acquire(TaskID("b"), facts())
    assert second != first
    assert Leases(tmp_path / "leases.json").acquire(TaskID("b"), facts()) == second
