"""Facts of this machine: for plans (`host_facts`), for managers (`describe`), for `swarm init` and `swarm join`.

Finding them out only reads; it blocks for less than a millisecond.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from hivemesh.agent.advertise import LocalAddress
from hivemesh.dataplane.balancer.engines import BASE, Engine
from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.names import GATEWAY_BRIDGE
from hivemesh.engine.api import Engine as ContainerEngine
from hivemesh.kernel import ipvs, machine
from hivemesh.kernel.machine import HostAddress
from hivemesh.model.addr import Address, Prefix, first_v4, first_v6
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.generic import GenericResource
from hivemesh.model.node import NodeDescription

log = logging.getLogger("hivemesh.agent")

GATEWAY_POOL = (
    *(IPv4Network(f"172.{second}.0.0/16") for second in range(18, 32)),
    IPv4Network("172.17.0.0/16"),
    *(IPv4Network(f"192.168.{third}.0/20") for third in range(0, 256, 16)),
)
"""Docker's pools for local networks; 172.17.0.0/16 is docker0's, where Docker runs too."""

PLAIN_MTU = 1500
"""Of bridges of a machine in no swarm, unless one of its links has less."""


def local_addresses() -> list[LocalAddress]:
    """This machine's addresses, to choose one to advertise."""
    return [LocalAddress(link=here.link, address=here.address) for here in machine.addresses()]


def local_routes() -> list[Prefix]:
    """Where this machine's packets already go; pools must keep clear of that."""
    return [prefix for link, prefix in machine.routes() if link != GATEWAY_BRIDGE]


def gather(vtep: Address | None, balancer: Engine = BASE) -> HostFacts:
    """Without `vtep`: outside a swarm. Raises `Unavailable` when the machine has lost its data path address."""
    addresses, learning = machine.addresses(), machine.learning_links()
    facts = plain_facts(addresses, learning) if vtep is None else host_facts(vtep, addresses, local_routes(), learning)
    return replace(
        facts,
        keep_bridge_filter=machine.needs_bridge_filter(),
        balancer=balancer,
        lacks_ipvs=not ipvs.available(),
    )


def host_facts(
    vtep: Address, addresses: Sequence[HostAddress], routes: Iterable[Prefix], learning: Iterable[str]
) -> HostFacts:
    """Pure. The gateway bridge keeps the subnets it has; `routes` are those of other links."""
    underlay = next((here for here in addresses if here.address.ip == vtep), None)
    if underlay is None:
        raise Unavailable(
            f"this machine no longer has the data path address {vtep}: give it back, or leave the swarm and join again"
        )
    beside = tuple(
        here.address for here in addresses if here.link == underlay.link and not here.address.ip.is_link_local
    )
    bridge = [here.address for here in addresses if here.link == GATEWAY_BRIDGE]
    kept4 = next((address for address in bridge if isinstance(address, IPv4Interface)), None)
    kept6 = next((address for address in bridge if isinstance(address, IPv6Interface)), None)
    return HostFacts(
        vtep=vtep,
        vtep_mtu=underlay.mtu,
        node_v4=vtep if isinstance(vtep, IPv4Address) else first_v4(beside),
        node_v6=vtep if isinstance(vtep, IPv6Address) else first_v6(beside),
        gateway4=kept4 or _free_gateway(routes),
        gateway6=kept6 or _unique_local_gateway(vtep),
        ra_interfaces=tuple(learning),
    )


def plain_facts(addresses: Iterable[HostAddress], learning: Iterable[str]) -> HostFacts:
    """Pure. Of a machine in no swarm: no tunnels, no gateway bridge."""
    mtus = [here.mtu for here in addresses if not here.address.ip.is_loopback and not here.link.startswith("hm")]
    return HostFacts(
        vtep=IPv4Address(0),
        vtep_mtu=min((PLAIN_MTU, *mtus)),
        node_v4=None,
        node_v6=None,
        gateway4=IPv4Interface("0.0.0.0/32"),
        gateway6=IPv6Interface("::/128"),
        ra_interfaces=tuple(learning),
    )


async def describe(
    engine: ContainerEngine,
    vtep: Address,
    name: str,
    labels: Mapping[str, str],
    generic: tuple[GenericResource, ...] = (),
    published: tuple[tuple[str, int], ...] = (),
) -> NodeDescription:
    """What managers are told. A machine whose engine fails says so by naming none."""
    try:
        info = await engine.info()
        words, version = f"{info.name} {info.version}", info.version
    except HivemeshError as error:
        log.warning("the container engine does not answer: %s", error)
        words = version = ""
    mtu, gateway = 1500, tuple[Prefix, ...]()
    try:
        facts = gather(vtep)
        mtu, gateway = facts.vtep_mtu, (facts.gateway4.network, facts.gateway6.network)
    except Unavailable as error:
        log.debug("describing this machine without its addresses: %s", error)  # whoever applies views complains
    return NodeDescription(
        hostname=name,
        architecture=os.uname().machine,
        nano_cpus=(os.cpu_count() or 1) * 1_000_000_000,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        generic=generic,
        engine=words,
        engine_version=version,
        labels=dict(labels),
        mtu=mtu,
        published=published,
        gateway=gateway,
        balancers=("nftables", "ipvs") if ipvs.available() else ("nftables",),
        protocols=("tcp", "udp", "sctp") if machine.has_sctp() else ("tcp", "udp"),
    )


def _free_gateway(routes: Iterable[Prefix]) -> IPv4Interface:
    taken = [route for route in routes if isinstance(route, IPv4Network) and route.prefixlen]
    for pool in GATEWAY_POOL:
        if not any(pool.overlaps(route) for route in taken):
            return IPv4Interface((pool.network_address + 1, pool.prefixlen))
    raise Unavailable("no free subnet for the gateway bridge: the host's routes cover all of Docker's local pools")


def _unique_local_gateway(vtep: Address) -> IPv6Interface:
    """An fd00::/8 prefix of the node's own (RFC 4193): 40 bits that a restart finds again."""
    digest = hashlib.sha256(f"{GATEWAY_BRIDGE} {vtep}".encode()).digest()
    network = IPv6Network((b"\xfd" + digest[:5] + bytes(10), 64))
    return IPv6Interface((network.network_address + 1, network.prefixlen))
