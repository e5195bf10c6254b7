"""What this machine's own network looks like: addresses, routes of everybody, settings. Nothing is changed here."""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from hivemesh.kernel import rtnl
from hivemesh.kernel.api import HOST
from hivemesh.model.addr import Interface, Prefix
from hivemesh.wire.rtnetlink import add_link, delete_link

_LEARNT = 0x40000  # RTF_ADDRCONF, linux/ipv6_route.h: from a router advertisement
PROBE = "hm-probe"
_IN_USE = 0x1  # RTF_UP, linux/route.h


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address, its link, and the link's MTU in bytes."""

    link: str
    mtu: int
    address: Interface


def addresses() -> list[HostAddress]:
    """All addresses of the machine but the kernel's own fe80::."""
    door = rtnl.door(HOST)
    links = {link.index: link for link in door.links().values()}
    return [
        HostAddress(links[seen.index].name, links[seen.index].mtu, seen.address)
        for seen in door.addresses()
        if seen.index in links and not seen.link_local
    ]


def routes(net: Path = Path("/proc/thread-self/net")) -> list[tuple[str, Prefix]]:
    """Links and destinations in the main routing table, whoever made them; the default route is of length 0."""
    found: list[tuple[str, Prefix]] = []
    for line in _lines(net / "route")[1:]:
        link, destination, _, flags, *rest = line.split()
        if int(flags, 16) & _IN_USE:
            # addresses are printed as the machine's integers
            network, mask = (socket.inet_ntoa(struct.pack("=I", int(text, 16))) for text in (destination, rest[3]))
            found.append((link, ipaddress.IPv4Network(f"{network}/{mask}")))
    for line in _lines(net / "ipv6_route"):
        destination, length, *_, flags, link = line.split()
        if int(flags, 16) & _IN_USE and link != "lo":
            found.append((link, ipaddress.IPv6Network((bytes.fromhex(destination), int(length, 16)))))
    return found


def learning_links(
    net: Path = Path("/proc/thread-self/net"), conf: Path = Path("/proc/sys/net/ipv6/conf")
) -> list[str]:
    """Links that got routes from router advertisements and still listen (accept_ra 1 or 2)."""
    learnt = {line.split()[-1] for line in _lines(net / "ipv6_route") if int(line.split()[-2], 16) & _LEARNT}
    return sorted(link for link in learnt if "".join(_lines(conf / link / "accept_ra")) in ("1", "2"))


def needs_bridge_filter(root: Path = Path("/")) -> bool:
    """Kubernetes runs here: its services need bridged packets to pass iptables (br_netfilter)."""
    return any((root / path).is_dir() for path in ("etc/kubernetes", "var/lib/kubelet", "var/lib/rancher"))


def has_link_kind(kind: str) -> bool:
    """Whether this kernel makes links of that kind: one is made, and removed. Needs privileges."""
    door = rtnl.door(HOST)
    if door.apply([add_link(PROBE, kind)]):
        return False
    made = door.link(PROBE)
    if made is not None:
        door.apply([delete_link(made.index, PROBE)])
    return True


def has_sctp() -> bool:
    """Whether programs here can speak SCTP: asking loads the module, where there is one."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no IPv6 here, or the link went while we looked
        return []
