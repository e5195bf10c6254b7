"""`ingress_sbox`: from the gateway bridge through the balancer onto the ingress network; clients keep their address."""

from collections.abc import Iterable

from hivemesh.dataplane.plan.balancing import mesh_part
from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.names import INGRESS_MARK, INGRESS_PORT, INGRESS_SANDBOX
from hivemesh.dataplane.plan.traffic import traffic_tables
from hivemesh.dataplane.plan.wiring import (
    endpoint_link,
    gateway_link,
    gateway_neighbors,
    gateway_routes,
    sandbox_sysctls,
)
from hivemesh.kernel.api import LinkAddress, NamespacePlan
from hivemesh.model.errors import Unavailable
from hivemesh.wire.control import NetworkItem, PublishItem

OVERLAY_LINK = "eth0"
GATEWAY_LINK = "eth1"


def plan_ingress(network: NetworkItem, facts: HostFacts, publishes: Iterable[PublishItem]) -> NamespacePlan:
    """Raises `Unavailable` while the ingress network has no address for this node."""
    own = network.own
    if own is None:
        raise Unavailable(f"network {network.name} has no address for this node yet: wait for the manager's next view")
    mesh = tuple(publishes)
    part = mesh_part(mesh, facts.balancer, outside=GATEWAY_LINK, overlay=OVERLAY_LINK, lacks_ipvs=facts.lacks_ipvs)
    tables = part.tables
    if facts.counts != "off":
        with_bytes = facts.counts == "bytes"
        tables += traffic_tables(mesh, outside=GATEWAY_LINK, overlay=OVERLAY_LINK, with_bytes=with_bytes)
    addresses = [LinkAddress(link=OVERLAY_LINK, address=a) for a in own.addresses]
    addresses += [LinkAddress(link=GATEWAY_LINK, address=a) for a in (facts.ingress4, facts.ingress6)]
    return NamespacePlan(
        namespace=INGRESS_SANDBOX,
        mark=INGRESS_MARK,
        links=(
            endpoint_link(OVERLAY_LINK, own, network, facts),
            gateway_link(GATEWAY_LINK, facts.ingress4, facts, INGRESS_PORT, INGRESS_SANDBOX),
        ),
        addresses=frozenset(addresses),
        routes=gateway_routes(GATEWAY_LINK, facts),
        neighbors=gateway_neighbors(GATEWAY_LINK, facts),
        sysctls=sandbox_sysctls()
        | {
            "net/ipv4/ip_forward": "1",
            "net/ipv6/conf/all/forwarding": "1",
            "net/ipv4/conf/all/send_redirects": "0",
            "net/ipv4/conf/default/send_redirects": "0",
        }
        | dict(part.sysctls),
        tables=tables,
        ipvs=part.ipvs,
    )
