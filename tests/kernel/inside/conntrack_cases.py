"""UDP connections to a backend that left are forgotten. Run by test_kernel_layer.py."""

import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from hivemesh.kernel import conntrack, netns
from hivemesh.kernel.sockets import close_netlink, dumped, open_netlink

RULES = """
table inet test {
  chain out {
    type nat hook output priority -100
    ip daddr 10.9.9.9 udp dport 1 dnat ip to 10.9.0.1
    ip daddr 10.9.9.9 udp dport 2 dnat ip to 10.9.0.2
    ip daddr 10.9.9.9 tcp dport 1 dnat ip to 10.9.0.1
    ip6 daddr fd09:9::9 udp dport 1 dnat ip6 to fd09::1
    ip6 daddr fd09:9::9 udp dport 2 dnat ip6 to fd09::2
  }
  chain zones {
    type filter hook output priority -300
    udp sport 4444 ct original zone set 7
  }
}
"""


def sh(command: str, **more: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture
def box() -> Iterator[str]:
    netns.create("box", "hivemesh/test")
    for address in ("10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"):
        sh(f"ip -n box addr add {address}/{128 if ':' in address else 32} dev lo nodad")
    sh("ip -n box route add default dev lo; ip -6 -n box route add default dev lo")
    sh("ip netns exec box nft -f -", input=RULES)
    yield "box"
    netns.delete("box")


def entries() -> list[str]:
    """The kernel's own text, each with a destination before and a source after translation."""
    return sh("ip netns exec box cat /proc/net/nf_conntrack").splitlines()


def send(address: str, port: int, sources: range) -> None:
    """One datagram from each source port."""

    def work() -> None:
        for source in sources:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.bind(("", source))
                sock.sendto(b"x", (address, port))

    netns.call_inside("box", work)


def connect(address: str, port: int) -> None:
    """A TCP connection; its entry stays for some time after its end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def work() -> None:
        with socket.create_server((address, port), family=family), socket.socket(family) as client:
            client.connect((address, port))

    netns.call_inside("box", work)


@pytest.mark.parametrize(
    ("virtual", "gone", "stays"), [("10.9.9.9", "10.9.0.1", "10.9.0.2"), ("fd09:9::9", "fd09::1", "fd09::2")]
)
def test_only_udp_entries_of_the_backend_that_left_are_forgotten(box: str, virtual: str, gone: str, stays: str) -> None:
    send(virtual, 1, range(20_000, 20_300))
    send(virtual, 1, range(4444, 4445))  # tracked in a zone of its own
    send(virtual, 2, range(20_000, 20_003))
    assert conntrack.forget(box, udp=[ip_address(gone)]) == 301
    left = [line for line in entries() if " udp " in line]
    assert len(left) == 3
    long = ip_address(stays).exploded
    assert all(f"src={stays}" in line or f"src={long}" in line for line in left)
    assert conntrack.forget(box, udp=[ip_address(gone)]) == 0
    assert conntrack.forget(box, udp=[ip_address(stays)]) == 3


@pytest.mark.parametrize(("virtual", "gone"), [("10.9.9.9", "10.9.0.1"), ("fd09:9::9", "fd09::1")])
def test_everything_of_an_address_that_is_gone_is_forgotten_also_tcp(box: str, virtual: str, gone: str) -> None:
    assert conntrack.forget(box, every=[ip_address(gone)]) == 0  # nothing is tracked at all
    send(virtual, 1, range(20_000, 20_003))
    send(virtual, 2, range(20_000, 20_003))
    connect(gone, 7)
    others = len(entries())
    assert conntrack.forget(box, every=[ip_address(gone)]) == 4
    assert len(entries()) == others - 4
    assert not any(" tcp " in line for line in entries())


@pytest.mark.parametrize(
    ("virtual", "one", "two", "within"),
    [("10.9.9.9", "10.9.0.1", "10.9.0.2", "10.9.0.0/24"), ("fd09:9::9", "fd09::1", "fd09::2", "fd09::/64")],
)
def test_strangers_in_our_networks_are_forgotten_and_those_we_know_stay(
    box: str, virtual: str, one: str, two: str, within: str
) -> None:
    send(virtual, 1, range(20_000, 20_003))  # to a backend that serves
    send(virtual, 2, range(20_000, 20_004))  # to one that is here, and drains
    send(two, 9, range(21_000, 21_002))  # by its own address
    connect(two, 7)
    known = [ip_address(one), ip_address(two)]
    prefix = [ip_network(within)]
    assert conntrack.forget_strangers(box, prefix, known=known, backends=known) == 0
    assert conntrack.forget_strangers(box, prefix, known=known, backends=known[:1]) == 4
    assert conntrack.forget_strangers(box, [ip_network("192.0.2.0/24")], known=[], backends=[]) == 0
    assert conntrack.forget_strangers(box, prefix, known=known[:1], backends=known[:1]) == 3
    assert len([line for line in entries() if " udp " in line]) == 3


def test_missing_namespace_is_an_error_that_says_so() -> None:
    with pytest.raises(FileNotFoundError):
        conntrack.forget("nothing", udp=[ip_address("10.9.0.1")])


def test_kernel_lists_only_what_comes_from_the_asked_address(box: str) -> None:
    """So that forgetting costs the same beside a hundred thousand other connections. Needs Linux 5.8."""
    send("10.9.9.9", 1, range(30_000, 30_003))
    send("10.9.9.9", 2, range(31_000, 31_050))
    send("fd09:9::9", 1, range(32_000, 32_050))
    sock = open_netlink(box, conntrack._NETLINK_NETFILTER)
    try:
        listed = list(dumped(sock, conntrack._GET, conntrack._from(ip_address("10.9.0.1"))))
    finally:
        close_netlink(sock)
    assert len(listed) == 3
