"""Changes that somebody else makes are heard, our own are not. Run by test_kernel_layer.py."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from apply_cases import OVERLAY, PEER, SANDBOX, gateway, host, overlay, sandbox

from hivemesh.dataplane.apply import Applier, Outcome
from hivemesh.kernel import netns
from hivemesh.kernel.api import HOST, FdbEntry, NamespacePlan, Neighbor
from hivemesh.kernel.monitor import Monitor
from hivemesh.model.addr import MAC

PLANS = {OVERLAY: overlay(), SANDBOX: sandbox(), HOST: host(), "box3": gateway("box3", 3)}
QUIET = 0.15
"""Seconds without news that count as silence."""


class Watched:
    """A node without an agent: applied plans, a monitor, and the names it told."""

    def __init__(self) -> None:
        self.applier = Applier()
        self.monitor = Monitor(self.applier)
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def listen(self) -> None:
        async for namespace in self.monitor:
            self.told.put_nowait(namespace)

    async def ensure(self, plan: NamespacePlan) -> Outcome:
        return await asyncio.to_thread(self.applier.ensure, plan)

    async def hear_of(self, namespace: str) -> None:
        async with asyncio.timeout(5):
            while await self.told.get() != namespace:
                pass

    async def news(self) -> set[str]:
        """What is told until it is quiet."""
        told = set()
        with contextlib.suppress(TimeoutError):
            while True:
                told.add(await asyncio.wait_for(self.told.get(), QUIET))
        return told


@pytest.fixture
async def node() -> AsyncIterator[Watched]:
    node = Watched()
    listening = asyncio.create_task(node.listen())
    try:
        for namespace in (HOST, OVERLAY, SANDBOX, "box3"):
            assert (await node.ensure(PLANS[namespace])).failed == ()
            node.monitor.add(namespace)
        await node.news()
        yield node
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
        for name in (*netns.names(), HOST):
            await asyncio.to_thread(node.applier.remove, name)


async def sh(command: str) -> None:
    done = await asyncio.to_thread(subprocess.run, command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("damage", "whose"),
    [
        (f"ip -n {OVERLAY} link delete vxlan0", OVERLAY),
        (f"ip -n {OVERLAY} link set vxlan0 down", OVERLAY),
        (f"ip -n {OVERLAY} link set br0 alias stranger", OVERLAY),
        (f"ip -n {OVERLAY} link set lo alias stranger", OVERLAY),
        (f"bridge -n {OVERLAY} fdb delete {PEER} dev vxlan0 self", OVERLAY),
        (f"bridge -n {OVERLAY} fdb add 02:00:00:00:00:66 dev vxlan0 dst 127.0.0.66 self permanent", OVERLAY),
        (f"ip -n {OVERLAY} neigh delete fd00:1::9 dev vxlan0", OVERLAY),
        (f"ip -n {OVERLAY} neigh replace 10.0.0.9 lladdr 02:00:00:00:00:01 dev vxlan0 nud reachable", OVERLAY),
        (f"ip -n {OVERLAY} addr delete fd00:1::1/64 dev br0", OVERLAY),
        # a port of the overlay belongs to the sandbox at its other end
        (f"ip -n {OVERLAY} link set veth1 nomaster", SANDBOX),
        (f"bridge -n {OVERLAY} link set dev veth1 isolated off", SANDBOX),
        (f"ip -n {OVERLAY} link delete veth1", SANDBOX),
        (f"ip -n {SANDBOX} link set eth0 down; ip -n {SANDBOX} link set eth0 up", SANDBOX),
        (f"ip -n {SANDBOX} addr add 10.0.0.66/24 dev eth0", SANDBOX),
        (f"ip -n {SANDBOX} route delete default", SANDBOX),
        (f"ip -6 -n {SANDBOX} route replace default dev eth0", SANDBOX),
        (f"ip -n {SANDBOX} rule delete priority 100", SANDBOX),
        (f"ip netns exec {SANDBOX} nft flush ruleset", SANDBOX),
        (f"ip netns exec {SANDBOX} nft flush chain inet hivemesh input", SANDBOX),
        (f"ip netns delete {SANDBOX}", SANDBOX),
        ("nft delete table inet hivemesh", HOST),
        ("ip link set hm-ve-3 nomaster", "box3"),
        ("ip link set hm_gwbridge mtu 1400", HOST),
        ("ip link delete hm_gwbridge", HOST),
    ],
)
async def test_damage_by_others_is_heard_and_repaired(node: Watched, damage: str, whose: str) -> None:
    await sh(damage)
    await node.hear_of(whose)
    outcomes = {namespace: await node.ensure(plan) for namespace, plan in PLANS.items()}
    assert outcomes[whose].repaired
    for plan in PLANS.values():
        assert await asyncio.to_thread(node.applier.differences, plan) == []


async def test_our_own_changes_are_not_told(node: Watched) -> None:
    peers = [
        (MAC(f"02:42:0a:00:01:{i:02x}"), ip_address(0x0A000100 + i), ip_address(0xFD01 << 112 | i)) for i in range(99)
    ]
    more = replace(
        overlay(),
        fdb=overlay().fdb | {FdbEntry(link="vxlan0", mac=m, vtep=ip_address("127.0.0.8")) for m, _, _ in peers},
        neighbors=overlay().neighbors | {Neighbor(link="vxlan0", address=a, mac=m) for m, *both in peers for a in both},
    )
    for plan in (more, overlay(), replace(host(), tables=()), host()):
        assert (await node.ensure(plan)).changed
        assert await node.news() == set()


async def test_new_and_gone_sandboxes_are_not_told(node: Watched) -> None:
    box = gateway("box4", 4)
    assert (await node.ensure(box)).created
    node.monitor.add("box4")
    node.monitor.add("box4")
    assert await node.news() == set()
    node.monitor.remove("box4")
    await asyncio.to_thread(node.applier.remove, "box4")
    assert await node.news() == set()


async def test_what_is_not_ours_is_not_told(node: Watched) -> None:
    await sh(f"ip -n {SANDBOX} neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud reachable")
    await sh(f"ip netns exec {SANDBOX} nft add table inet theirs; ip route add 203.0.113.0/24 dev lo")
    await sh("ip link add v1 type veth peer name v2; ip link set v1 up; ip link delete v1")
    assert await node.news() == set()
    assert (await node.ensure(sandbox())).changed == 0


async def test_change_of_the_machines_own_addresses_names_the_host_without_doubt(node: Watched) -> None:
    await sh("ip addr add 192.0.2.1/32 dev lo")
    assert await node.news() == {HOST}
    assert (await node.ensure(host())).changed == 0
    await sh("ip addr delete 192.0.2.1/32 dev lo")


async def test_end_of_listening_closes_all_sockets() -> None:
    monitor = Monitor()
    monitor.add(HOST)
    heard = asyncio.Event()

    async def listen() -> None:
        async for namespace in monitor:
            assert namespace == HOST
            heard.set()

    listening = asyncio.create_task(listen())
    await sh("ip addr add 192.0.2.1/32 dev lo; ip addr delete 192.0.2.1/32 dev lo")
    async with asyncio.timeout(5):
        await heard.wait()
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    assert not monitor._sockets
