"""What a node tells of its kernel, with damage done by iproute2. Run by test_kernel_layer.py."""

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from apply_cases import OVERLAY, SANDBOX, overlay, sandbox, sh

from hivemesh.agent.picture import carried_by, look_at
from hivemesh.dataplane.apply import Applier
from hivemesh.kernel.linux import Linux
from hivemesh.wire.topology import Device, Space

PLANS = {plan.namespace: plan for plan in (overlay(), sandbox())}
VTEP = ip_address("127.0.0.1")


@pytest.fixture(autouse=True)
def _made() -> Iterator[None]:
    applier = Applier()
    for plan in PLANS.values():
        assert applier.ensure(plan).failed == ()
    yield
    for namespace in reversed(PLANS):
        applier.remove(namespace)


def seen() -> dict[str, Space]:
    return {space.namespace: space for space in look_at(Linux(), PLANS, VTEP).spaces}


def device(namespace: str, name: str) -> Device:
    return next(device for device in seen()[namespace].devices if device.name == name)


def test_links_addresses_and_who_is_plugged_in_where_are_told() -> None:
    assert device(SANDBOX, "eth0") == Device(
        name="eth0",
        kind="veth",
        mtu=1450,
        peer=f"{OVERLAY}/veth1",
        plugged="br0",
        addresses=("10.0.0.5/24", "fd00:1::5/64"),
    )
    assert [(d.name, d.kind, d.master, d.vni) for d in seen()[OVERLAY].devices if d.kind != "veth"] == [
        ("br0", "bridge", "", 0),
        ("vxlan0", "vxlan", "br0", 4096),
    ]
    assert seen()[OVERLAY].vteps == {"127.0.0.9": 1}


def test_veth_that_somebody_unplugged_or_put_down_shows() -> None:
    sh(f"ip -n {OVERLAY} link set veth1 nomaster")
    assert (device(SANDBOX, "eth0").peer, device(SANDBOX, "eth0").plugged) == (f"{OVERLAY}/veth1", "")
    sh(f"ip -n {SANDBOX} link set eth0 down")
    assert not device(SANDBOX, "eth0").up


def test_veth_that_only_has_the_right_name_leads_nowhere() -> None:
    sh(f"ip -n {OVERLAY} link del veth1")
    sh(f"ip -n {OVERLAY} link add veth1 type veth peer name other")
    sh(f"ip -n {SANDBOX} link add eth0 type veth peer name stranger")
    assert device(SANDBOX, "eth0").peer == ""


def test_namespace_that_is_gone_says_so_and_the_others_are_told() -> None:
    sh(f"ip netns del {SANDBOX}")
    told = seen()
    assert (told[SANDBOX].problem, told[SANDBOX].devices) == ("the namespace is missing", ())
    assert told[OVERLAY].devices


def test_what_links_carry_is_counted_in_the_order_of_the_devices() -> None:
    look = look_at(Linux(), PLANS, VTEP)
    names = [f"{space.namespace}/{device.name}" for space in look.spaces for device in space.devices]
    before = carried_by(Linux(), look)
    sh(f"ip netns exec {SANDBOX} ping -c 3 -s 1000 -i 0.01 10.0.0.1")
    after = carried_by(Linux(), look)
    assert before is not None
    assert after is not None
    grown = {name: (after[2 * n] - before[2 * n], after[2 * n + 1] - before[2 * n + 1]) for n, name in enumerate(names)}
    received, sent = grown[f"{SANDBOX}/eth0"]
    assert received >= 3000
    assert sent >= 3000
    sh(f"ip -n {OVERLAY} link del vxlan0")
    assert carried_by(Linux(), look) is None
