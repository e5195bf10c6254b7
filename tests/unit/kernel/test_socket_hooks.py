"""Balancing sockets where something is missing or full; with real traffic: `tests/contract/test_socket_balancer.py`."""

import errno
import os
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from hivemesh.kernel import bpf, sockethooks
from hivemesh.kernel.api import SocketVip
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.wire.bpfasm import R0, R1, Code
from hivemesh.wire.sockaddr import ENTRIES, MAPS, MEMBERS, SLOTS, MapSpec


def nobody(_: object) -> None:
    return None


def vip(last: int, *backends: int) -> SocketVip:
    return SocketVip(
        address=IPv4Address(f"10.0.1.{last}"), slots=tuple(IPv4Address(f"10.0.1.{backend}") for backend in backends)
    )


def test_machine_without_cgroup_v2_says_how_to_mount_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "cgroup_root", lambda: "")
    hooks = SocketHooks(None)
    assert hooks.said is None
    assert hooks.lack() == hooks.said
    assert hooks.lack() == "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified, and start again"
    assert hooks.ensure("nowhere", [vip(1, 2)], nobody) == 0


def test_kernel_that_refuses_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, spec: MapSpec) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(bpf, "cgroup_root", lambda: "/")
    monkeypatch.setattr(bpf.Map, "create", refuse)
    assert "CAP_BPF and CAP_NET_ADMIN" in SocketHooks(None).lack()


def test_jumps_reach_over_instructions_of_two_slots() -> None:
    code = Code()
    code.jump_if(R1, "==", 0, "end")
    code.map(R1, "entries")
    code.label("end")
    code.exit()
    found = code.assemble({"entries": 5})
    assert found.hex(" ", 8) == "1601020000000000 1811000005000000 0000000000000000 9500000000000000"
    lost = Code()
    lost.jump_if(R0, "==", 0, "nowhere")
    with pytest.raises(KeyError):
        lost.assemble({})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[SocketHooks]:
    """Maps that hold two entries and four slots; no programs."""
    sizes = {ENTRIES: 2, SLOTS: 4, MEMBERS: 4}
    specs = {
        name: MapSpec(kind=s.kind, key=s.key, value=s.value, most=sizes.get(name, 8), flags=s.flags)
        for name, s in MAPS.items()
    }
    monkeypatch.setattr(sockethooks, "MAPS", specs)
    monkeypatch.setattr(sockethooks, "_cookie", len)  # of a name: its length
    hooks = SocketHooks(None)
    hooks._open_maps()
    yield hooks
    hooks.close()


def sizes(hooks: SocketHooks) -> dict[str, int]:
    return {name: len(list(hooks._maps[name].items())) for name in (ENTRIES, SLOTS, MEMBERS)}


@pytest.mark.kernel
def test_sandbox_that_does_not_fit_is_left_out_and_comes_in_when_there_is_room(
    small: SocketHooks, caplog: pytest.LogCaptureFixture
) -> None:
    assert small.ensure("a", [vip(1, 11, 12)], nobody) == 1
    for _ in range(2):
        assert small.ensure("bb", [vip(1, 11, 12), vip(2, 13)], nobody) == 0
    assert [record.message for record in caplog.records] == [
        "bb: the maps for sockets are full, nftables alone balances its services"
    ]
    assert sizes(small) == {ENTRIES: 1, SLOTS: 2, MEMBERS: 2}
    assert small.differences("bb", [vip(2, 13)], nobody) == []
    small.forget("a")
    assert sizes(small) == {ENTRIES: 0, SLOTS: 0, MEMBERS: 0}
    assert small.ensure("bb", [vip(1, 11, 12), vip(2, 13)], nobody) == 2


@pytest.mark.kernel
def test_sandboxes_share_slots_until_the_last_one_changes(small: SocketHooks) -> None:
    small.ensure("a", [vip(1, 11, 12)], nobody)
    small.ensure("bb", [vip(1, 11, 12)], nobody)
    assert sizes(small) == {ENTRIES: 2, SLOTS: 2, MEMBERS: 2}
    assert small.ensure("a", [vip(1, 11)], nobody) == 1
    assert sizes(small) == {ENTRIES: 2, SLOTS: 3, MEMBERS: 3}
    assert small.ensure("bb", [vip(1)], nobody) == 1
    assert sizes(small) == {ENTRIES: 2, SLOTS: 1, MEMBERS: 1}
    assert small.ensure("a", [], nobody) == 1
    assert sizes(small) == {ENTRIES: 1, SLOTS: 0, MEMBERS: 0}
