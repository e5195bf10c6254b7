"""One overlay network on this node: a bridge, a VXLAN port, and who is where."""

import ipaddress
from collections.abc import Iterable

from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.names import BRIDGE, VXLAN, overlay_mark, overlay_namespace
from hivemesh.kernel.api import Bridge, FdbEntry, LinkAddress, NamespacePlan, Neighbor, Vxlan
from hivemesh.model.addr import MAC, Address, Interface, mac_from, mac_of
from hivemesh.wire.control import NetworkItem, PeerItem


def overlay_mtu(network: NetworkItem, facts: HostFacts) -> int:
    """What fits into the underlay (as the network's option says, else as measured) once VXLAN's headers are added."""
    return (network.mtu or facts.vtep_mtu) - facts.overhead


def plan_overlay(network: NetworkItem, facts: HostFacts, peers: Iterable[PeerItem]) -> NamespacePlan:
    """The overlay's namespace without its local endpoints: each sandbox plugs in its own.

    Nothing is flooded to other nodes, so all we know of them must stand here: for each peer a forwarding entry (which
    node has the MAC) and per address a neighbor, from which the VXLAN port answers ARP and NDP.
    """
    namespace = overlay_namespace(network.id)
    mtu = overlay_mtu(network, facts)
    fdb: dict[MAC, FdbEntry] = {}
    neighbors: dict[Address, Neighbor] = {}
    # While an address moves, two peers may claim it: the same one wins on every node and after every restart
    for peer in sorted(peers, key=lambda p: p.endpoint, reverse=True):
        if peer.network != network.id or peer.vtep == facts.vtep:
            continue
        fdb[peer.mac] = FdbEntry(link=VXLAN, mac=peer.mac, vtep=peer.vtep)
        for interface in peer.addresses:
            neighbors[interface.ip] = Neighbor(link=VXLAN, address=interface.ip, mac=peer.mac)
    return NamespacePlan(
        namespace=namespace,
        mark=overlay_mark(network.id),
        links=(
            Bridge(name=BRIDGE, mtu=mtu, mac=_bridge_mac(network)),
            Vxlan(name=VXLAN, vni=network.vni, port=network.port, local=facts.vtep, mtu=mtu, master=BRIDGE),
        ),
        addresses=frozenset(LinkAddress(link=BRIDGE, address=a) for a in _gateways(network)),
        neighbors=frozenset(neighbors.values()),
        fdb=frozenset(fdb.values()),
        sysctls=_sysctls(network),
    )


def _gateways(network: NetworkItem) -> list[Interface]:
    return [ipaddress.ip_interface(f"{subnet.gateway}/{subnet.prefix.prefixlen}") for subnet in network.subnets]


def _bridge_mac(network: NetworkItem) -> MAC:
    """The same on every node, like the gateway address: neither ever leaves its node."""
    for interface in _gateways(network):
        if interface.version == 4:
            return mac_of(interface.ip)
    return mac_from(network.id)


def _sysctls(network: NetworkItem) -> dict[str, str]:
    """Several subnets of one family are routed by br0; else nothing is forwarded here."""

    def several(version: int) -> str:
        return "1" if sum(s.prefix.version == version for s in network.subnets) > 1 else "0"

    return {
        # Measured: bridged packets through iptables' hooks cost a tenth, and another firewall's DROP would reach them
        "net/bridge/bridge-nf-call-iptables": "0",
        "net/bridge/bridge-nf-call-ip6tables": "0",
        "net/bridge/bridge-nf-call-arptables": "0",
        "net/ipv4/ip_forward": several(4),
        "net/ipv6/conf/all/forwarding": several(6),
        "net/ipv6/conf/all/disable_ipv6": "0",
        "net/ipv6/conf/default/disable_ipv6": "0",
        "net/ipv6/conf/default/accept_ra": "0",
        "net/ipv6/conf/default/accept_dad": "0",
    }
