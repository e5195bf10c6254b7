"""What a plan needs to know of this node, and the small values that only exist on a node."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from hivemesh.config import Counts
from hivemesh.dataplane.balancer.engines import BASE, Engine
from hivemesh.model.addr import Address
from hivemesh.model.network import VXLAN_OVERHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Facts of the machine, found once at start and whenever its addresses change."""

    vtep: Address
    vtep_mtu: int
    """Of the underlay interface that carries `vtep`, in bytes."""
    node_v4: IPv4Address | None
    node_v6: IPv6Address | None
    """The addresses the node shows to tasks when itself (127.0.0.1, ::1) or one of its containers is the client."""
    gateway4: IPv4Interface
    gateway6: IPv6Interface
    """What `hm_gwbridge` carries: 172.18.0.1/16 and the first address of a unique local /64."""
    ra_interfaces: tuple[str, ...] = ()
    """Interfaces that learn addresses or routes from router advertisements (accept_ra 1). IPv6 forwarding would turn
    that off; the host's plan sets them to 2 (accept although forwarding)."""
    keep_bridge_filter: bool = False
    """Somebody on this machine (Kubernetes) needs bridged packets to pass iptables (br_netfilter). Else the host's plan
    turns that off: it rewrites packets of our bridge before they are routed, and then ::1 and containers of this node
    do not reach its published ports."""
    balancer: Engine = BASE
    """What balances services here whose labels do not say."""
    lacks_ipvs: bool = False
    """This kernel has none: services whose labels ask for IPVS are balanced by nftables here. Their own tasks run where
    it is to be had."""

    sockets: bool = False
    """Sockets are led to backends as they connect (`balancer/sockets.py`); nftables does the rest."""

    counts: Counts = "bytes"
    """What is counted of published ports (`traffic.py`)."""

    @property
    def in_swarm(self) -> bool:
        """Outside, `vtep` is no address, and there is no gateway bridge."""
        return not self.vtep.is_unspecified

    @property
    def overhead(self) -> int:
        """Bytes VXLAN adds to a frame on this underlay."""
        return VXLAN_OVERHEAD if self.vtep.version == 4 else VXLAN_OVERHEAD + 20

    @property
    def ingress4(self) -> IPv4Interface:
        """`ingress_sbox` on the gateway bridge: always the second address."""
        return IPv4Interface((self.gateway4.network.network_address + 2, self.gateway4.network.prefixlen))

    @property
    def ingress6(self) -> IPv6Interface:
        return IPv6Interface((self.gateway6.network.network_address + 2, self.gateway6.network.prefixlen))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLease:
    """A sandbox's addresses on `hm_gwbridge`."""

    v4: IPv4Interface
    v6: IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """A port published in host mode: the node's `port` leads to `target` at the sandbox's gateway addresses."""

    protocol: str
    port: int
    target: int
    v4: IPv4Address
    v6: IPv6Address
