"""What every sandbox has in common: how it is plugged into overlays and into the gateway bridge."""

from ipaddress import IPv4Interface, IPv4Network, IPv6Network

from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.names import BRIDGE, GATEWAY_BRIDGE, endpoint_port, overlay_namespace
from hivemesh.dataplane.plan.overlay import overlay_mtu
from hivemesh.kernel.api import HOST, Neighbor, Route, Veth, VethEnd
from hivemesh.model.addr import mac_of
from hivemesh.model.task import Attachment
from hivemesh.wire.control import NetworkItem

ANYWHERE4 = IPv4Network("0.0.0.0/0")
ANYWHERE6 = IPv6Network("::/0")


def endpoint_link(name: str, endpoint: Attachment, network: NetworkItem, facts: HostFacts) -> Veth:
    """An interface on an overlay."""
    return Veth(
        name=name,
        mac=endpoint.mac,
        mtu=overlay_mtu(network, facts),
        outer=VethEnd(namespace=overlay_namespace(network.id), name=endpoint_port(endpoint.endpoint_id), master=BRIDGE),
    )


def gateway_link(name: str, address: IPv4Interface, facts: HostFacts, port: str, owner: str) -> Veth:
    """An interface on the gateway bridge. Its port is isolated: it speaks with the host, not with other containers."""
    return Veth(
        name=name,
        mac=mac_of(address.ip),
        mtu=facts.vtep_mtu,
        outer=VethEnd(
            namespace=HOST, name=port, master=GATEWAY_BRIDGE, isolated=True, alias=f"hivemesh/sandbox/{owner}"
        ),
    )


def gateway_routes(link: str, facts: HostFacts) -> frozenset[Route]:
    """The way out, in both families."""
    return frozenset(
        {
            Route(destination=ANYWHERE4, link=link, gateway=facts.gateway4.ip),
            Route(destination=ANYWHERE6, link=link, gateway=facts.gateway6.ip),
        }
    )


def gateway_neighbors(link: str, facts: HostFacts) -> frozenset[Neighbor]:
    """The bridge's MAC is ours to choose, so nobody has to ask for it."""
    mac = mac_of(facts.gateway4.ip)
    return frozenset(Neighbor(link=link, address=a.ip, mac=mac) for a in (facts.gateway4, facts.gateway6))


def sandbox_sysctls() -> dict[str, str]:
    """Namespaces inherit the host's current settings, whatever they are: say what we need."""
    return {
        "net/ipv4/ip_forward": "0",
        "net/ipv6/conf/all/forwarding": "0",
        "net/ipv6/conf/all/disable_ipv6": "0",
        "net/ipv6/conf/default/disable_ipv6": "0",
        "net/ipv6/conf/default/accept_ra": "0",
        "net/ipv6/conf/default/accept_dad": "0",
        # The larger of `all` and the interface's own counts. Strict: the reverse path of each interface is the same.
        "net/ipv4/conf/all/rp_filter": "1",
    }
