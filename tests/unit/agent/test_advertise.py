from ipaddress import ip_interface

import pytest

from hivemesh.agent.advertise import LocalAddress, choose_address, listen_address
from hivemesh.model.errors import Invalid


def machine(*pairs: str) -> list[LocalAddress]:
    return [LocalAddress(link, ip_interface(text)) for link, text in (pair.split("=") for pair in pairs)]


ONE = machine("lo=127.0.0.1/8", "eth0=192.0.2.5/24", "eth0=fd00::5/64", "eth0=fe80::1/64", "docker0=172.17.0.1/16")
TWO = machine("eth0=192.0.2.5/24", "eth1=203.0.113.5/24")


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("", "192.0.2.5"),
        ("eth0", "192.0.2.5"),
        ("eth0:2377", "192.0.2.5"),
        ("192.0.2.5:2377", "192.0.2.5"),
        ("fd00::5", "fd00::5"),
        ("[fd00::5]:2377", "fd00::5"),
        ("172.17.0.1", "172.17.0.1"),
    ],
)
def test_machine_with_one_address_is_advertised_as_asked(asked: str, chosen: str) -> None:
    assert str(choose_address(asked, "advertise address", ONE)) == chosen


@pytest.mark.parametrize(
    ("asked", "here", "words"),
    [
        ("192.0.2.6", ONE, "neither an address nor an interface of this machine"),
        ("eth7", ONE, "neither an address nor an interface"),
        ("", TWO, r"on different interfaces \(192.0.2.5 on eth0 and 203.0.113.5 on eth1\)"),
        ("eth0", machine("eth0=192.0.2.5/24", "eth0=192.0.2.6/24"), "multiple addresses on interface eth0"),
        ("", machine("lo=127.0.0.1/8"), "could not find the system's IP address"),
        ("192.0.2.5:port", ONE, "expected host:port"),
        ("[fd00::5", ONE, "expected host:port"),
    ],
)
def test_address_that_is_not_ours_or_not_clear_is_refused(asked: str, here: list[LocalAddress], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        choose_address(asked, "advertise address", here)


@pytest.mark.parametrize(
    ("asked", "listens"), [("0.0.0.0:4000", "0.0.0.0:4000"), ("eth0", "192.0.2.5:2377"), ("[::]:1", "[::]:1")]
)
def test_listen_address_names_an_address_or_all_of_them(asked: str, listens: str) -> None:
    assert listen_address(asked, ONE) == listens
