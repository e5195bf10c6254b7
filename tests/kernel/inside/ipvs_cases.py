"""IPVS services applied to a real kernel, with ipvsadm as witness. Run by test_ipvs.py, on kernels that have it."""

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from socket import AF_INET, AF_INET6

import pytest

from hivemesh.dataplane.apply import Applier
from hivemesh.dataplane.balancer.ipvs import SYSCTLS
from hivemesh.kernel import ipvs, ipvs_counts, netns
from hivemesh.kernel.api import Destination, LinkAddress, NamespacePlan, VirtualService
from hivemesh.kernel.netns import call_inside
from hivemesh.wire import nft

SANDBOX, MARK = "sandbox", 0x700
VIP, BACKEND, OTHER = "10.9.0.1", "127.0.0.2", "127.0.0.3"


def service(
    *backends: tuple[str, int], mark: int = MARK, scheduler: str = "wrr", linger: bool = True
) -> VirtualService:
    found = tuple(Destination(address=ip_address(a), weight=w) for a, w in backends)
    family = AF_INET6 if found and found[0].address.version == 6 else AF_INET
    return VirtualService(family=family, mark=mark, scheduler=scheduler, linger=linger, destinations=found)


def plan(*services: VirtualService) -> NamespacePlan:
    """A sandbox whose own packets to the virtual address carry the mark."""
    rule = nft.Rule(
        exprs=(
            *nft.match_destination(4, ip_address(VIP).packed),
            nft.immediate(nft.host_u32(MARK)),
            nft.meta_set("mark"),
        )
    )
    hook = nft.Hook(type="filter", hook="output", priority=-300)
    return NamespacePlan(
        namespace=SANDBOX,
        mark="hivemesh/sandbox/t1",
        addresses=frozenset({LinkAddress(link="lo", address=ip_interface(f"{VIP}/32"))}),
        sysctls=SYSCTLS if services else {},
        tables=(nft.Table(family="inet", name="hivemesh", chains=(nft.Chain(name="o", hook=hook, rules=(rule,)),)),),
        ipvs=services,
    )


@pytest.fixture
def applier() -> Iterator[Applier]:
    yield Applier()
    netns.delete(SANDBOX)


def ensure(applier: Applier, wanted: NamespacePlan) -> int:
    outcome = applier.ensure(wanted)
    assert not outcome.failed
    assert applier.differences(wanted) == []
    return outcome.changed


def ipvsadm(*arguments: str) -> str:
    command = ["ip", "netns", "exec", SANDBOX, "ipvsadm", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rules() -> list[str]:
    return sorted(line.strip() for line in ipvsadm("-Sn").splitlines())


def test_services_of_both_families_are_there_and_a_second_time_changes_nothing(applier: Applier) -> None:
    wanted = plan(service((BACKEND, 1), (OTHER, 3)), service(("fd00::2", 1), scheduler="mh"))
    ensure(applier, wanted)
    assert rules() == [
        "-A -f 1792 -6 -s mh",
        "-A -f 1792 -s wrr",
        "-a -f 1792 -6 -r [fd00::2]:0 -m -w 1",
        f"-a -f 1792 -r {BACKEND}:0 -m -w 1",
        f"-a -f 1792 -r {OTHER}:0 -m -w 3",
    ]
    assert str(ipvs.TCP_TIMEOUT) in ipvsadm("-l", "--timeout")
    assert ensure(applier, wanted) == 0
    assert ensure(Applier(), wanted) == 0  # a process without memory


def test_first_service_of_a_namespace_brings_its_settings_with_it(applier: Applier) -> None:
    ensure(applier, plan())
    ensure(applier, plan(service((BACKEND, 1))))
    assert str(ipvs.TCP_TIMEOUT) in ipvsadm("-l", "--timeout")


def test_change_reaches_what_it_changes(applier: Applier) -> None:
    ensure(applier, plan(service((BACKEND, 1), (OTHER, 1)), service((BACKEND, 1), mark=9)))
    ensure(applier, plan(service((OTHER, 2), scheduler="sh"), service((BACKEND, 1), mark=9)))
    assert rules() == [
        "-A -f 1792 -s sh",
        "-A -f 9 -s wrr",
        f"-a -f 1792 -r {OTHER}:0 -m -w 2",
        f"-a -f 9 -r {BACKEND}:0 -m -w 1",
    ]
    ensure(applier, plan())
    assert rules() == []


def test_damage_is_seen_and_repaired_and_strangers_go(applier: Applier) -> None:
    wanted = plan(service((BACKEND, 1), (OTHER, 1)))
    ensure(applier, wanted)
    ipvsadm("-d", "-f", str(MARK), "-r", f"{BACKEND}:0")
    ipvsadm("-E", "-f", str(MARK), "-s", "lc")
    ipvsadm("-A", "-f", "5", "-s", "rr")
    ipvsadm("-a", "-f", "5", "-r", "127.0.0.9:0", "-m")
    ipvsadm("--set", "900", "0", "0")
    found = applier.differences(wanted)
    assert len(found) == 4, found
    applier.forget(SANDBOX)
    outcome = applier.ensure(wanted)
    assert not outcome.failed
    assert any(BACKEND in text for text in outcome.repaired)
    assert applier.differences(wanted) == []
    assert "-f 5" not in ipvsadm("-Sn")


class Talk:
    """A server on a backend's address, and a connection to it through the virtual one."""

    def __init__(self) -> None:
        self.server, self.client = call_inside(SANDBOX, self._begin)
        self.peer, _ = self.server.accept()

    def _begin(self) -> tuple[socket.socket, socket.socket]:
        server = socket.socket()
        server.bind((BACKEND, 80))
        server.listen()
        client = socket.create_connection((VIP, 80), timeout=5)
        server.settimeout(5)
        return server, client

    def goes_on(self) -> bool:
        self.client.send(b"?")
        self.peer.settimeout(5)
        return self.peer.recv(10) == b"?"

    def waits_for_an_answer(self) -> None:
        self.client.send(b"?")
        self.client.recv(1)

    def close(self) -> None:
        for each in (self.client, self.peer, self.server):
            each.close()


def test_connection_outlives_its_destination_and_is_reset_when_the_backend_is_gone(applier: Applier) -> None:
    ensure(applier, plan(service((BACKEND, 1))))
    talk = Talk()
    try:
        ensure(applier, plan(service((OTHER, 1))))
        assert f"-r {BACKEND}:0 -m -w 0" in ipvsadm("-Sn")
        assert talk.goes_on()
        ensure(applier, plan())
        assert talk.goes_on()
        assert ipvs.forget(SANDBOX, {ip_address(BACKEND)}) == 1
        with pytest.raises(ConnectionResetError):
            talk.waits_for_an_answer()
    finally:
        talk.close()


def test_connections_are_counted_by_service_and_destination(applier: Applier) -> None:
    ensure(applier, plan(service((BACKEND, 1)), service((OTHER, 1), mark=9), service(("fd00::2", 1))))
    for _ in range(2):
        Talk().close()
    ours = (AF_INET, MARK)
    ends = time.monotonic() + 30  # the kernel sums up every other second
    while ipvs_counts.connections(SANDBOX)[ours] < 2 and time.monotonic() < ends:
        time.sleep(0.2)
    assert ipvs_counts.connections(SANDBOX) == {ours: 2, (AF_INET, 9): 0, (AF_INET6, MARK): 0}
    assert ipvs_counts.connections_by_backend(SANDBOX) == {ours: {ip_address(BACKEND): 2}}


def test_destination_that_does_not_linger_goes_with_its_connections(applier: Applier) -> None:
    ensure(applier, plan(service((BACKEND, 1), linger=False)))
    talk = Talk()
    try:
        ensure(applier, plan(service((OTHER, 1), linger=False)))
        assert BACKEND not in ipvsadm("-Sn")
    finally:
        talk.close()


def test_bad_service_is_named_and_holds_up_nothing(applier: Applier) -> None:
    wanted = plan(service((BACKEND, 1), scheduler="nonsense", mark=1), service((OTHER, 1)))
    outcome = applier.ensure(wanted)
    assert outcome.failed == ("IPVS service IPv4 mark 0x1: No such file or directory",)
    assert "-A -f 1792 -s wrr" in rules()
    ensure(applier, replace(wanted, ipvs=wanted.ipvs[1:]))
