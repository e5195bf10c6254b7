"""Addresses of a subnet, given out one after the other."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemesh.ipam.leases import Leases
from hivemesh.model.addr import Interface
from hivemesh.model.errors import Exhausted
from hivemesh.model.network import Subnet


def subnet(text: str, gateway: str, ip_range: str = "") -> Subnet:
    return Subnet(
        prefix=ip_network(text), gateway=ip_address(gateway), ip_range=ip_network(ip_range) if ip_range else None
    )


SMALL = subnet("10.0.0.0/29", "10.0.0.1")


def test_addresses_follow_the_gateway_in_order() -> None:
    for leases, first in (
        (Leases(SMALL), "10.0.0.2/29"),
        (Leases(subnet("fd00::/64", "fd00::1")), "fd00::2/64"),
        (Leases(subnet("10.0.0.0/24", "10.0.0.254")), "10.0.0.1/24"),
    ):
        assert leases.acquire() == ip_interface(first)
        assert leases.acquire().ip == ip_interface(first).ip + 1


def test_a_freed_address_comes_last() -> None:
    leases = Leases(SMALL)
    first = leases.acquire()
    leases.release(first)
    rest = [leases.acquire() for _ in range(4)]
    assert first not in rest
    assert leases.acquire() == first


def test_a_full_subnet_says_so_and_recovers() -> None:
    leases = Leases(SMALL)
    given = [leases.acquire() for _ in range(5)]
    with pytest.raises(Exhausted, match=r"no free address in 10\.0\.0\.0/29"):
        leases.acquire()
    leases.release(given[2])
    assert leases.acquire() == given[2]


def test_an_address_range_limits_what_is_given_but_not_what_is_held() -> None:
    leases = Leases(subnet("10.0.0.0/24", "10.0.0.1", "10.0.0.128/30"))
    leases.hold(ip_address("10.0.0.129"))
    leases.hold(ip_address("10.0.0.5"))
    leases.hold(ip_address("fd00::128"))
    assert [str(leases.acquire()) for _ in range(3)] == ["10.0.0.128/24", "10.0.0.130/24", "10.0.0.131/24"]
    with pytest.raises(Exhausted, match=r"10\.0\.0\.128/30"):
        leases.acquire()


def test_leases_rebuilt_go_on_after_the_last() -> None:
    leases = Leases(SMALL, after=int(ip_address("10.0.0.4")))
    leases.hold(ip_interface("10.0.0.5/29"))
    assert [str(leases.acquire().ip) for _ in range(4)] == ["10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.booleans(), max_size=60))
def test_no_address_has_two_owners_and_all_are_hosts(steps: list[bool]) -> None:
    leases = Leases(subnet("10.0.0.0/28", "10.0.0.1"))
    held: list[Interface] = []
    for take in steps:
        if take:
            try:
                address = leases.acquire()
            except Exhausted:
                assert len(held) == 13
                continue
            assert address not in held
            assert int(address) & 15 not in (0, 1, 15)
            held.append(address)
        elif held:
            leases.release(held.pop(0))
