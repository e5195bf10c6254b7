"""What a network namespace of this node can be asked to hold: frozen values, compared as they are.

A `NamespacePlan` is the whole of what we want in one namespace. `kernel/` reads the same values back, so that
wanted against actual is a comparison of sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from hivemesh.model.addr import MAC, VNI, Address, Prefix
from hivemesh.wire.nft import Table

HOST = ""
"""The name of the namespace the daemon itself runs in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A bridge device, up."""

    name: str
    mtu: int
    mac: MAC | None = None
    alias: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vxlan:
    """A VXLAN device, up; made in the host so that its socket and routing stay there, then moved.

    Always `nolearning proxy`, no default destination: nothing is flooded between nodes.
    """

    name: str
    vni: VNI
    port: int
    local: Address
    mtu: int
    master: str
    alias: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VethEnd:
    """The far end of a veth pair: a port of a bridge in another namespace."""

    namespace: str
    name: str
    master: str
    isolated: bool = False  # bridge port isolation: speaks with the bridge itself, not with other isolated ports
    alias: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Veth:
    """The near end of a veth pair, up, and where its far end is plugged in."""

    name: str
    mac: MAC
    mtu: int
    outer: VethEnd
    alias: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Macvlan:
    """A link with a MAC of its own on a link of the host, its parent, up.

    `mode` is as `ip link` names it; `mtu` 0 is the parent's.
    """

    name: str
    mac: MAC
    mtu: int
    parent: str
    mode: str = "bridge"
    alias: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dummy:
    """A link that leads nowhere, up: the parent of a macvlan network that has none."""

    name: str
    mtu: int
    alias: str = ""


Link = Bridge | Vxlan | Veth | Macvlan | Dummy


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkAddress:
    """An address on a link (IPv6 without duplicate address detection: we allocate, nobody else does)."""

    link: str
    address: IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A unicast route, or (`local`) one that delivers here what comes in through `link`: RTN_LOCAL, table 255.

    `destination` of length 0 is the default route. Protocol 117 marks it as ours.
    """

    destination: Prefix
    link: str
    gateway: Address | None = None
    table: int = 254
    onlink: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy routing rule: packets from `source` or with `mark`/`mask` look into `table`."""

    family: int  # socket.AF_INET or AF_INET6
    priority: int
    table: int
    source: Prefix | None = None
    mark: int = 0
    mask: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbor:
    """A permanent ARP or NDP entry."""

    link: str
    address: Address
    mac: MAC


@dataclass(frozen=True, slots=True, kw_only=True)
class FdbEntry:
    """A permanent, static entry of a VXLAN device: which node gets frames for this MAC."""

    link: str
    mac: MAC
    vtep: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A backend of an IPVS service. Weight 0: no new connections."""

    address: Address
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualService:
    """An IPVS service: packets of `family` that carry `mark` go to its destinations, their port kept.

    A destination that is wanted no more gets weight 0, so that its connections live on, and goes when it has none; with
    `linger` false (UDP, which knows no connections) it goes at once.
    """

    family: int  # socket.AF_INET or AF_INET6
    mark: int
    scheduler: str  # the kernel's name: wrr, wlc, sh, mh
    flags: int = 0  # IP_VS_SVC_F_…
    linger: bool = True
    destinations: tuple[Destination, ...] = ()  # in the order in which they are added


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketVip:
    """A virtual address that sockets are led away from as they connect. Slots as nftables has them; none: refused."""

    address: Address
    slots: tuple[Address, ...]
    seed: int | None = None
    """Of the hash of the client's address that chooses the slot; None: in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePlan:
    """Everything we want in one namespace. In the host only what carries our mark is ours to remove."""

    namespace: str
    mark: str  # written as the alias of `lo`, so that a process without memory knows whose namespace this is
    links: tuple[Link, ...] = ()
    addresses: frozenset[LinkAddress] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()
    neighbors: frozenset[Neighbor] = frozenset()
    fdb: frozenset[FdbEntry] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)  # "net/ipv4/ip_forward" -> "1"
    tables: tuple[Table, ...] = ()
    ipvs: tuple[VirtualService, ...] = ()
    sockets: tuple[SocketVip, ...] = ()
