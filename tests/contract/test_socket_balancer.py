"""Sockets that are led to backends as they connect, where no packet to a virtual address gets through.

What every balancer must do is said by `test_balancer_contract.py`; there nftables stands behind the sockets. Here a
table of the test's own refuses whatever is sent to a virtual address: what works is the sockets' doing alone.
"""

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from balancer_rig import Machine, vip
from mesh_rig import (
    Reply,
    ask,
    ask_unconnected,
    balance_sockets,
    differences,
    end_connections,
    leave_sockets_alone,
    led,
    let_go_of_sockets,
    outcomes_again,
    peer_of,
    probed,
    run,
)

from hivemesh.wire.sockaddr import hashed

pytestmark = pytest.mark.kernel

CALLER = "caller000000"
FAMILIES = pytest.mark.parametrize("version", [4, 6])
WAYS = pytest.mark.parametrize(("version", "as_six"), [(4, False), (6, False), (4, True)], ids=["4", "6", "4-by-6"])
UNSEEN = """
table inet unseen {
    chain output {
        type filter hook output priority -300
        ip daddr 10.0.1.5 reject with icmp admin-prohibited
        ip6 daddr fd10:0:0:1::5 reject with icmpv6 admin-prohibited
    }
}
"""
PINS = "/run/netns/pins"  # in the machine's own mount namespace


class Sockets(Machine):
    """Beside the rig's machine: what only sockets can do."""

    def do(self, function: Callable[..., Any], *args: Any, at: str = "", **kwargs: Any) -> Any:
        return self.node.call(function, *args, at=at, **kwargs)

    def start(self) -> None:
        super().start()
        self.do(run, "nft", "-f", "-", text=UNSEEN, at=CALLER)

    def differences(self, weights: Mapping[str, int]) -> list[str]:
        found: list[str] = self.do(differences, [self.plan_of_vip(weights)])
        return [line for line in found if "socket" in line]


@pytest.fixture(scope="module")
def machine() -> Iterator[Sockets]:
    machine = Sockets("sockets")
    try:
        machine.start()
        yield machine
    finally:
        machine.close()


@WAYS
def test_tcp_socket_is_led_to_a_backend_and_believes_it_speaks_with_the_address(
    machine: Sockets, version: int, as_six: bool
) -> None:
    machine.spread("vip", {"b1": 1, "b2": 1})
    found = [machine.do(peer_of, str(vip(version)), 80, as_six, at=CALLER) for _ in range(4)]
    prefix = "::ffff:" if as_six else ""
    assert sorted(found) == [(name, f"{prefix}{vip(version)}") for name in ("b1", "b1", "b2", "b2")]


@FAMILIES
@pytest.mark.parametrize(("protocol", "port", "kind"), [("tcp", 80, "syn-ack"), ("udp", 53, "datagram")])
def test_probe_of_a_trace_is_led_as_any_socket(
    machine: Sockets, version: int, protocol: str, port: int, kind: str
) -> None:
    machine.spread("vip", {"b1": 1, "b2": 1})
    found = machine.do(probed, CALLER, str(vip(version)), port, 4, protocol)
    assert [how for how, _ in found] == [kind] * 4
    sources = [ipaddress.ip_address(source) for _, source in found]
    assert vip(version) not in sources
    assert sorted(map(sources.count, set(sources))) == [2, 2]


@WAYS
def test_udp_socket_keeps_its_backend_until_that_takes_no_more(machine: Sockets, version: int, as_six: bool) -> None:
    address = str(vip(version))
    machine.spread("vip", {"b1": 1, "b2": 1, "b3": 1})
    said = machine.do(ask_unconnected, address, 53, 5, as_six, at=CALLER)
    (first, source) = said[0]
    assert source == ("::ffff:" if as_six else "") + address
    assert said == [(first, source)] * 5
    others = [name for name in ("b1", "b2", "b3") if name != first]
    machine.spread("vip", {first: 1, others[0]: 1})
    assert machine.do(ask_unconnected, address, 53, 3, as_six, at=CALLER) == [(first, source)] * 3
    machine.spread("vip", {first: 0, others[0]: 1})
    assert machine.do(ask_unconnected, address, 53, 3, as_six, at=CALLER) == [(others[0], source)] * 3
    machine.spread("vip", {})
    assert machine.do(ask_unconnected, address, 53, 1, as_six, at=CALLER) == [("ConnectionRefusedError", "")]


@FAMILIES
@pytest.mark.parametrize("scheduler", ["source", "maglev"])
def test_affinity_chooses_as_nftables_does(machine: Sockets, behind: Machine, version: int, scheduler: str) -> None:
    weights = {"b1": 1, "b2": 2, "b3": 1}
    for each in (machine, behind):
        each.spread("vip", weights, scheduler)  # type: ignore[arg-type]
    chosen = machine.ask_from_all("vip", "tcp", version)
    assert chosen == behind.ask_from_all("vip", "tcp", version)
    assert set(chosen.values()) == weights.keys()
    not_bound = [each.node.call(ask, "tcp", str(vip(version)), 80, at=CALLER)[0].server for each in (machine, behind)]
    assert not_bound[0] == not_bound[1]


@FAMILIES
@pytest.mark.parametrize("scheduler", ["rr", "source"])
def test_sockets_that_were_led_are_counted(machine: Sockets, version: int, scheduler: str) -> None:
    machine.spread("vip", {}, scheduler)  # type: ignore[arg-type]
    machine.spread("vip", {"b1": 1, "b2": 1}, scheduler)  # type: ignore[arg-type]
    for _ in range(3):
        machine.do(peer_of, str(vip(version)), 80, at=CALLER)
    machine.do(ask_unconnected, str(vip(version)), 53, 5, at=CALLER)  # one flow at most
    assert machine.do(led, str(vip(version))) in (3, 4)


@pytest.fixture(scope="module")
def behind() -> Iterator[Machine]:
    machine = Machine("nftables")
    try:
        machine.start()
        yield machine
    finally:
        machine.close()


def test_hash_is_the_kernels() -> None:
    """jhash of 10.0.0.1 with seed 7, and of ::1 with seed 0, as a C program with linux/jhash.h has them."""
    assert hashed(ipaddress.ip_address("10.0.0.1").packed, 7) == 3758407940
    assert hashed(ipaddress.ip_address("::1").packed, 0) == 1041396393


@FAMILIES
def test_connection_to_a_backend_that_is_gone_ends_at_once(machine: Sockets, version: int) -> None:
    machine.spread("vip", {"b1": 1})
    machine.ask("vip", "tcp", version, keep=True)
    machine.spread("vip", {"b2": 1})
    machine.ask("vip", "tcp", version, keep=True)
    gone = ipaddress.ip_address("10.0.1.11" if version == 4 else "fd10:0:0:1::b")
    assert machine.do(end_connections, CALLER, [gone]) == 1
    assert machine.do(outcomes_again) == ["b2", "ConnectionAbortedError"]


def test_sockets_stay_balanced_while_nobody_runs_and_are_taken_over() -> None:
    machine = Sockets("sockets")

    def ask_both(version: int) -> set[str]:
        answers = [machine.do(ask, "tcp", str(vip(version)), 80, at=CALLER)[0] for _ in range(2)]
        return {answer.server if isinstance(answer, Reply) else answer for answer in answers}

    try:
        machine.start()
        machine.do(leave_sockets_alone)
        assert ask_both(4) == {"OSError"}
        for _ in range(2):  # the first makes maps and links, the second finds them
            assert machine.do(balance_sockets, PINS) == ""
            machine.spread("vip", {"b1": 1, "b2": 1})
            machine.do(let_go_of_sockets)
            assert ask_both(4) == ask_both(6) == {"b1", "b2"}
        assert machine.do(balance_sockets, PINS) == ""
        assert machine.differences({"b1": 1, "b2": 1}) == []
        assert machine.differences({"b1": 1}) == [
            f"{CALLER}: socket entry is wrong: {vip(version)}" for version in (4, 6)
        ]
        machine.do(leave_sockets_alone)
        assert "pins" not in machine.do(run, "ls", "/run/netns").split()
        assert ask_both(4) == {"OSError"}
    finally:
        machine.close()
