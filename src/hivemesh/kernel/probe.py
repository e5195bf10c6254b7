"""What this kernel can do, found by trying each thing in a namespace made for that."""

import contextlib
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

from hivemesh.kernel import netns, nft
from hivemesh.kernel.rtnl import Rtnl, door
from hivemesh.model.addr import MAC, Address
from hivemesh.wire.netlink import Message
from hivemesh.wire.nft import (
    ACCEPT,
    IPV4,
    Chain,
    Expr,
    Hook,
    Rule,
    Table,
    ct_set,
    dnat,
    host_u32,
    immediate,
    match_nfproto,
    numgen,
    verdict,
)
from hivemesh.wire.rtnetlink import add_bridge, add_veth, add_vxlan

_MARK = "hivemesh/probe"
_REMEDY = "load its module, or install the distribution's full kernel"


def missing() -> list[str]:
    """One line for each thing we need and this kernel lacks; [] when it has all. Takes some 50 ms; needs root."""
    name = f"hm-probe-{os.getpid()}"
    try:
        netns.create(name, _MARK)
    except OSError as error:
        return [f"network namespaces cannot be made here: {error.strerror or error}"]
    try:
        return [f"this kernel lacks {what} ({error}): {_REMEDY}" for what, error in _failures(name)]
    finally:
        netns.delete(name)


def _failures(name: str) -> Iterator[tuple[str, str]]:
    inside = door(name)
    for what, message in _links():
        for failure in inside.apply([message]):
            yield what, failure.words or os.strerror(failure.errno)
    device = _some_device(inside)
    for what, table in _tables(device):
        error = _outcome(lambda table=table: nft.ensure(name, table))  # type: ignore[misc]
        if error:
            yield what, error
            continue
        with contextlib.suppress(OSError):
            nft.delete(name, table.family, table.name)


def _some_device(inside: Rtnl) -> str:
    """A device that can have an egress chain."""
    return "probe0" if inside.link("probe0") is not None else "lo"


def _links() -> list[tuple[str, Message]]:
    def vxlan(name: str, vni: int, local: Address) -> Message:
        return add_vxlan(name, vni=vni, port=4789, local=local, mtu=1450, master=0, namespace=None)

    return [
        ("bridges", add_bridge("br0", None)),
        (
            "veth pairs",
            add_veth("probe0", "probe1", mtu=1450, mac=MAC("02:42:00:00:00:01"), master=0, namespace=None),
        ),
        ("VXLAN", vxlan("vxlan4", 1, IPv4Address("127.0.0.1"))),
        ("VXLAN over IPv6", vxlan("vxlan6", 2, IPv6Address("::1"))),
    ]


def _tables(device: str) -> list[tuple[str, Table]]:
    def table(family: str, hook: Hook, *exprs: Expr) -> Table:
        return Table(family=family, name="probe", chains=(Chain(name="c", hook=hook, rules=(Rule(exprs=exprs),)),))

    to_loopback = immediate(IPv4Address("127.0.0.1").packed)
    prerouting = Hook(type="nat", hook="prerouting", priority=-100)
    return [
        (
            "nftables with tables of family inet",
            table("inet", Hook(type="filter", hook="input", priority=0), verdict(ACCEPT)),
        ),
        (
            "nftables address translation",
            table("inet", prerouting, *match_nfproto(IPV4), to_loopback, dnat(IPV4, 0)),
        ),
        ("nftables numgen", table("inet", Hook(type="filter", hook="input", priority=0), numgen(2))),
        (
            "nftables conntrack zones",
            table(
                "inet",
                Hook(type="filter", hook="prerouting", priority=-300),
                immediate(host_u32(1)),
                ct_set("zone", 0, 0),
            ),
        ),
        (
            "nftables egress chains (kernel 5.16)",
            table("netdev", Hook(type="filter", hook="egress", priority=0, device=device), verdict(ACCEPT)),
        ),
    ]


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    return ""
