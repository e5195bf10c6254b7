"""Slots and descriptions: who gets which share, and who moves when somebody leaves."""

import ipaddress
import random
import statistics
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemesh.dataplane.balancer.api import Published, Target, targets, virtual
from hivemesh.dataplane.balancer.nftables import Nftables, vip_chain
from hivemesh.dataplane.balancer.slots import MAGLEV_SIZES, MOST_SLOTS, consistent, in_turn
from hivemesh.dataplane.plan.balancing import mesh_part, vip_part
from hivemesh.model.ids import NetworkID, ServiceID, TaskID
from hivemesh.model.service import Balance, Scheduler
from hivemesh.wire.control import Backend, ServiceItem
from hivemesh.wire.nft import Goto, host_u32


def target(last: int, weight: int = 1) -> Target:
    return Target(address=ipaddress.ip_address("10.0.1.0") + last, weight=weight)


def lasts(slots: tuple[object, ...]) -> list[int]:
    return [int(str(address).rpartition(".")[2]) for address in slots]


def service(*backends: Backend, scheduler: Scheduler = "rr", last: int = 5) -> ServiceItem:
    return ServiceItem(
        network=NetworkID("net"),
        service=ServiceID(f"service{last}"),
        name="web",
        vips=(ipaddress.ip_address(f"10.0.1.{last}"), ipaddress.ip_address(f"fd10::{last}")),
        balance=Balance(scheduler=scheduler),
        backends=backends,
    )


def backend(last: int, weight: int = 1, six: bool = True) -> Backend:
    addresses = (ipaddress.ip_address(f"10.0.1.{last}"), ipaddress.ip_address(f"fd10::1:{last}"))
    return Backend(task=TaskID(f"t{last}"), addresses=addresses[: 2 if six else 1], weight=weight)


# --- in turn ---------------------------------------------------------------------------------------------------------


def test_heavier_target_comes_more_often_and_never_all_at_once() -> None:
    assert lasts(in_turn([target(1, 3), target(2, 1)])) == [1, 1, 2, 1]
    assert lasts(in_turn([target(1, 5), target(2, 1), target(3, 1)])) == [1, 1, 1, 2, 3, 1, 1]


def test_equal_weights_need_one_slot_each() -> None:
    assert lasts(in_turn([target(n, 7) for n in (1, 2, 3)])) == [1, 2, 3]
    assert in_turn([]) == ()


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60))
def test_every_target_gets_its_share_of_slots(weights: list[int]) -> None:
    found = Counter(in_turn([target(n, weight) for n, weight in enumerate(weights)]))
    slots = sum(found.values())
    assert slots <= MOST_SLOTS + len(weights)
    for n, weight in enumerate(weights):
        share = Fraction(weight, sum(weights))
        assert abs(Fraction(found[target(n).address], slots) - share) < Fraction(len(weights), MOST_SLOTS)


# --- consistent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 50, 200])
def test_consistent_slots_are_shared_evenly(count: int) -> None:
    slots = consistent([target(n) for n in range(count)])
    assert len(slots) in MAGLEV_SIZES
    found = Counter(slots)
    assert len(found) == count
    assert max(found.values()) - min(found.values()) <= 1


def test_consistent_slots_respect_weights() -> None:
    found = Counter(lasts(consistent([target(1, 3), target(2, 1)])))
    assert found[1] == pytest.approx(3 * found[2], rel=0.03)


def test_target_that_leaves_moves_few_slots_of_others() -> None:
    dice = random.Random(2016)  # any: single sets of targets, whose turns happen to be alike, may do far worse
    moved = []
    for _ in range(200):
        members = sorted(dice.sample(range(1, 251), dice.randint(3, 20)))
        gone = dice.choice(members)
        before = lasts(consistent([target(n) for n in members]))
        after = lasts(consistent([target(n) for n in members if n != gone]))
        moved.append(sum(b != gone and b != a for b, a in zip(before, after, strict=True)) / len(before))
    assert statistics.median(moved) <= 0.06  # with a plain modulus it is all but one in n
    assert statistics.quantiles(moved, n=20)[-1] <= 0.15


# --- descriptions ----------------------------------------------------------------------------------------------------


def test_targets_stand_by_family_and_address_each_once() -> None:
    found = targets([backend(9), backend(7), backend(9, 0)])
    assert [str(t.address) for t in found] == ["10.0.1.7", "10.0.1.9", "fd10::1:7", "fd10::1:9"]
    assert {t.weight for t in found} == {1}


def test_virtual_address_has_targets_of_its_family_only() -> None:
    four, six = virtual(service(backend(7), backend(8, six=False)))
    assert [str(t.address) for t in four.targets] == ["10.0.1.7", "10.0.1.8"]
    assert [str(t.address) for t in six.targets] == ["fd10::1:7"]


def test_service_without_virtual_addresses_is_not_balanced() -> None:
    item = ServiceItem(network=NetworkID("net"), service=ServiceID("s"), name="web", backends=(backend(7),))
    assert vip_part([item], "nftables").tables == ()


# --- nftables --------------------------------------------------------------------------------------------------------


def test_virtual_address_without_backends_is_refused() -> None:
    (table,) = vip_part([service(backend(7, 0)), service(backend(8), last=6)], "nftables").tables
    maps = {m.name: m.elements for m in table.maps}
    five, six = ipaddress.ip_address("10.0.1.5"), ipaddress.ip_address("10.0.1.6")
    assert maps["vips4"] == {five.packed: Goto("refuse"), six.packed: Goto("vip-10.0.1.6")}
    assert maps["backends4"] == {six.packed + host_u32(0): ipaddress.ip_address("10.0.1.8").packed}
    assert vip_chain(ipaddress.ip_address("fd10::6")) == "vip-fd10--6"
    assert table.chain("vip-fd10--6") is not None


def test_services_in_turn_share_their_rules_and_services_with_affinity_do_not() -> None:
    def rules(scheduler: Scheduler) -> list[object]:
        items = [service(backend(7), backend(8), scheduler=scheduler, last=last) for last in (5, 6)]
        (table,) = vip_part(items, "nftables").tables
        return [chain.rules[0] for n in (5, 6) if (chain := table.chain(f"vip-10.0.1.{n}"))]

    one, other = rules("rr")
    assert one is other
    one, other = rules("source")
    assert one != other


def test_all_ports_of_a_service_lead_a_client_to_one_backend() -> None:
    ports = [
        Published(
            service=ServiceID("web"),
            name="web",
            scheduler="source",
            targets=targets([backend(7), backend(8)]),
            protocol="tcp",
            port=port,
        )
        for port in (80, 443)
    ]
    (table,) = Nftables().mesh(ports, outside="eth1", overlay="eth0").tables
    one, other = (table.chain(f"tcp-{port}") for port in (80, 443))
    assert one is not None
    assert other is not None
    assert one.rules == other.rules


def test_ingress_sandbox_lets_nothing_begin_on_the_overlay_also_without_ports() -> None:
    (table,) = mesh_part([], "nftables", outside="eth1", overlay="eth0").tables
    chain = table.chain("prerouting")
    assert chain is not None
    assert chain.rules[-1].comment == "connections do not begin on the overlay"
