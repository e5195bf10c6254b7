"""Namespaces, settings and the probe. Run by test_kernel_layer.py."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from hivemesh.kernel import netns, nft, probe, rtnl, sysctl
from hivemesh.kernel.api import HOST
from hivemesh.model.errors import Conflict


def sh(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def _no_namespaces() -> Iterator[None]:
    yield
    for name in netns.names():
        netns.delete(name)


def test_created_namespace_is_known_to_iproute2_up_and_marked() -> None:
    netns.create("box", "hivemesh/sandbox/box")
    assert sh("ip netns list").split() == ["box"]
    (loopback,) = sh("ip -n box -o link").splitlines()
    assert "LOOPBACK,UP" in loopback
    assert "hivemesh/sandbox/box" in loopback
    assert netns.mark_of("box") == "hivemesh/sandbox/box"
    assert netns.path("box") == "/run/netns/box"


def test_namespace_of_iproute2_is_seen_without_mark() -> None:
    sh("ip netns add theirs")
    assert netns.exists("theirs")
    assert netns.names() == ["theirs"]
    assert netns.mark_of("theirs") == ""
    assert rtnl.held("theirs") is None


def test_taken_name_is_refused() -> None:
    sh("ip netns add theirs")
    with pytest.raises(Conflict, match="ip netns delete theirs"):
        netns.create("theirs", "hivemesh/x")


def test_left_over_file_is_no_namespace_and_no_obstacle() -> None:
    netns.create("first", "hivemesh/x")
    with open("/run/netns/box", "w"):
        pass
    assert not netns.exists("box")
    assert netns.names() == ["first"]
    assert netns.leftovers() == ["box"]
    netns.create("box", "hivemesh/x")
    assert netns.exists("box")
    assert netns.leftovers() == []


def test_reserved_place_is_no_leftover_while_it_lasts() -> None:
    """Swept then, an engine would miss the namespace of the container it is just creating."""
    with netns.reserved("box") as place:
        assert os.path.exists(place)
        assert netns.leftovers() == []
    assert not os.path.exists(place)
    with netns.reserved("box"):
        netns.create("box", "hivemesh/x")
    assert netns.exists("box")


def test_deleted_name_can_be_used_again_for_another_namespace() -> None:
    netns.create("box", "hivemesh/one")
    rtnl.door("box").links()
    nft.tables("box")
    sh("ip -n box link add d0 type bridge")
    netns.delete("box")
    netns.delete("box")
    assert not os.path.exists("/run/netns/box")
    netns.create("box", "hivemesh/two")
    assert list(rtnl.door("box").links()) == ["lo"]
    assert netns.mark_of("box") == "hivemesh/two"


def test_name_given_to_another_namespace_behind_our_back_is_noticed() -> None:
    netns.create("box", "hivemesh/one")
    sh("ip -n box link add br7 type bridge")
    assert "br7" in rtnl.door("box").links()
    sh("ip netns delete box; ip netns add box")
    assert list(rtnl.door("box").links()) == ["lo"]
    assert netns.mark_of("box") == ""


def test_lost_name_is_given_back_while_we_hold_the_namespace() -> None:
    netns.create("box", "hivemesh/one")
    before = rtnl.door("box").identity
    assert not netns.pin_again("box")
    sh("ip netns delete box")
    assert not netns.exists("box")
    assert netns.pin_again("box")
    assert rtnl.identity("box") == before
    assert not netns.pin_again("never-was")


def test_missing_namespace_is_an_error_that_says_so() -> None:
    for attempt in (
        lambda: rtnl.door("nothing"),
        lambda: netns.mark_of("nothing"),
        lambda: netns.call_inside("nothing", lambda: None),
    ):
        with pytest.raises(FileNotFoundError):
            attempt()


def test_call_inside_leaves_the_caller_where_it_was() -> None:
    netns.create("box", "hivemesh/one")

    def where() -> int:
        return os.stat("/proc/thread-self/ns/net").st_ino

    here = where()
    assert netns.call_inside("box", where) == os.stat("/run/netns/box").st_ino != here
    assert where() == here == netns.call_inside(HOST, where)
    with pytest.raises(ZeroDivisionError):
        netns.call_inside("box", lambda: 1 // 0)


def test_settings_are_those_of_the_namespace() -> None:
    netns.create("box", "hivemesh/one")
    here = sysctl.read(HOST, ["net/ipv4/ip_forward"])
    wanted = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/lo/accept_ra": "2", "net/ipv4/ping_group_range": "0 99"}
    _, failed = sysctl.ensure("box", wanted)
    assert failed == {}
    assert sysctl.differing("box", wanted) == {}
    assert sh("ip netns exec box sysctl -n net.ipv4.ip_forward net.ipv6.conf.lo.accept_ra").split() == ["1", "2"]
    assert sysctl.read(HOST, ["net/ipv4/ip_forward"]) == here


def test_settings_that_do_not_exist_differ_unless_their_module_is_optional() -> None:
    wanted = {"net/ipv4/conf/nolink/rp_filter": "0", "net/bridge/bridge-nf-call-nothing": "0"}
    assert sysctl.differing(HOST, wanted) == {"net/ipv4/conf/nolink/rp_filter": None}
    found, failed = sysctl.ensure(HOST, wanted)
    assert list(found) == list(failed) == ["net/ipv4/conf/nolink/rp_filter"]


def test_probe_finds_nothing_missing_and_leaves_nothing() -> None:
    assert probe.missing() == []
    assert netns.names() == []
