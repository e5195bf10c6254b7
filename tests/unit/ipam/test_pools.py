"""Subnets cut from pools."""

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemesh.ipam import pools
from hivemesh.model.addr import Prefix
from hivemesh.model.errors import Exhausted


def nets(*texts: str) -> list[Prefix]:
    return [ip_network(text) for text in texts]


@pytest.mark.parametrize(
    ("pool", "size", "taken", "expected"),
    [
        (["10.0.0.0/8"], 24, [], "10.0.0.0/24"),
        (["10.0.0.0/8"], 24, ["10.0.0.0/24", "10.0.2.0/24"], "10.0.1.0/24"),
        (["10.0.0.0/8"], 24, ["10.0.0.128/32"], "10.0.1.0/24"),
        (["10.0.0.0/8"], 24, ["10.0.0.0/15", "10.2.0.1/32"], "10.2.1.0/24"),
        (["10.0.0.0/24", "10.9.0.0/16"], 24, ["10.0.0.0/24"], "10.9.0.0/24"),
        (["10.0.0.0/24"], 24, ["fd00::/8", "192.168.0.0/16"], "10.0.0.0/24"),
        (["10.0.0.0/30", "10.4.0.0/29"], 29, [], "10.4.0.0/29"),
        (["fd00:1:2::/48"], 64, ["fd00:1:2::/64", "10.0.0.0/8"], "fd00:1:2:1::/64"),
    ],
)
def test_the_lowest_free_subnet_is_cut(pool: list[str], size: int, taken: list[str], expected: str) -> None:
    assert pools.cut(nets(*pool), size, nets(*taken)) == ip_network(expected)


def test_pools_with_nothing_left_are_named() -> None:
    with pytest.raises(Exhausted, match=r"no free /24 subnet is left in the address pools \(10\.0\.0\.0/23\)"):
        pools.cut(nets("10.0.0.0/23"), 24, nets("10.0.0.0/24", "10.0.1.7/32"))
    with pytest.raises(Exhausted, match="none"):
        pools.cut([], 24, [])


def test_a_pool_around_routes_keeps_the_rest() -> None:
    left = pools.without(ip_network("10.0.0.0/8"), nets("10.0.0.0/16", "10.128.0.0/9", "192.168.0.0/16"), 24)
    assert left[0] == ip_network("10.1.0.0/16")
    assert pools.overlapping(ip_network("10.0.3.0/24"), left) is None
    assert pools.overlapping(ip_network("10.200.0.0/24"), left) is None
    assert sum(part.num_addresses for part in left) == 2**23 - 2**16
    assert pools.without(ip_network("10.0.0.0/8"), nets("10.0.0.0/7"), 24) == ()
    assert pools.without(ip_network("10.0.0.0/8"), [], 24) == (ip_network("10.0.0.0/8"),)


prefixes4 = st.builds(
    lambda number, size: IPv4Network(((10 << 24) | (number & 0x1FFF), size), strict=False),
    st.integers(0, 0x1FFF),
    st.integers(20, 32),
)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(prefixes4, max_size=30), st.integers(20, 26))
def test_what_is_cut_is_free_and_nothing_lower_is(taken: list[IPv4Network], size: int) -> None:
    pool = ip_network("10.0.0.0/20")
    try:
        found = pools.cut([pool], size, taken)
    except Exhausted:
        assert all(pools.overlapping(subnet, taken) for subnet in pool.subnets(new_prefix=size))
        return
    assert pools.overlapping(found, taken) is None
    assert pools.overlapping(found, [pool])
    for subnet in pool.subnets(new_prefix=size):
        if subnet == found:
            break
        assert pools.overlapping(subnet, taken)


@given(st.integers(0, 2**64 - 1))
def test_families_never_overlap(number: int) -> None:
    assert pools.overlapping(IPv6Network((number << 64, 64)), nets("0.0.0.0/0")) is None
