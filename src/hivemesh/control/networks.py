"""What users do to networks. The allocator grants VNI and subnets in the same transaction."""

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Network

import msgspec

from hivemesh.cnm import local
from hivemesh.control import lookup, ports, validate
from hivemesh.ipam import pools
from hivemesh.model.addr import Address, Prefix, parse_address, parse_prefix
from hivemesh.model.cursor import Cursor
from hivemesh.model.errors import Conflict, Forbidden, Invalid, Unsupported
from hivemesh.model.ids import NetworkID
from hivemesh.model.local import LocalSpec
from hivemesh.model.network import MTU_OPTION, OVERLAY, VNI_OPTION, IPAMConfig, Network, NetworkSpec, Subnet
from hivemesh.model.node import Node
from hivemesh.model.service import Service
from hivemesh.model.task import Task, TaskState
from hivemesh.store.tables import Transaction, View

OPTIONS = (MTU_OPTION, VNI_OPTION)
"""Driver options an overlay network may carry; anything else would be ignored, so it is refused."""
ENCRYPTED = "encrypted"
NOT_ENCRYPTED = (
    "network option 'encrypted' is not supported: hivemesh sets up no IPsec, and would send this network's packets in "
    "the clear. Leave --opt encrypted out where the wire is trusted; else give nodes addresses inside a tunnel that "
    "encrypts, such as WireGuard's, with `swarm init --data-path-addr` and `swarm join --data-path-addr`"
)
"""Whatever its value: Docker encrypts with `encrypted=false` too."""
MAX_VNI = (1 << 24) - 1
MTU = range(1280, 65536)
"""IPv6 needs 1280 (RFC 8200)."""
SMALLEST_V4 = 29
"""Network, broadcast and gateway address leave five."""
SMALLEST_V6 = 120
NOT_FOR_HOSTS = tuple(
    map(
        ipaddress.ip_network,
        ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/16", "fe80::/10", "ff00::/8"),
    )
)
"""This host, loopback, link-local, multicast and reserved; in IPv6 also IPv4 in disguise (RFC 6890)."""


def create(tx: Transaction, spec: NetworkSpec, now: float, new_id: str) -> Network:
    """Raises `Invalid`, `Conflict`, `Forbidden` or `Unsupported`."""
    if spec.name in validate.PREDEFINED:
        raise Forbidden(f"{spec.name} is a pre-defined network and cannot be created")
    validate.name(spec.name, "network")
    if any(other.spec.name == spec.name for other in tx.all(Network)):
        raise Conflict(f"network with name {spec.name} already exists")
    if spec.node_local:
        if spec.driver not in local.OPTIONS:
            names = ", ".join((OVERLAY, *local.OPTIONS))
            raise Unsupported(f"network driver {spec.driver!r} is not supported: use {names}")
        if spec.ingress:
            raise Invalid("ingress network can only be of the overlay driver")
        local.check(LocalSpec.of(spec))
        return tx.put(Network(id=NetworkID(new_id), spec=spec, created=now, updated=now))
    if spec.ingress:
        _check_ingress(tx, spec)
    _check_options(tx, spec)
    subnets = given_subnets(spec)
    for subnet in subnets:
        _check_free(tx, subnet.prefix)
    if any(subnet.prefix.version == 6 for subnet in subnets):
        spec = msgspec.structs.replace(spec, ipv6=True)
    return tx.put(Network(id=NetworkID(new_id), spec=spec, created=now, updated=now))


def remove(tx: Transaction, reference: str) -> Network:
    """Raises `Invalid` while a service, a live task or a plain container is on the network."""
    network = lookup.network(tx, reference)
    if network.spec.ingress:
        for service in tx.all(Service):
            if any(port.publish_mode == "ingress" for port in service.spec.endpoint_spec.ports):
                raise Invalid(
                    f"ingress network cannot be removed because service {service.id} ({service.spec.name}) depends on "
                    "it: unpublish its ports first"
                )
    for service in tx.all(Service):
        if any(attachment.target == network.id for attachment in service.spec.task_template.networks):
            raise Invalid(f"network {network.id} is in use by service {service.id} ({service.spec.name})")
    for task in tx.all(Task):
        running = task.desired <= TaskState.RUNNING and not task.status.state.dead
        if running and any(attachment.network_id == network.id for attachment in task.attachments):
            who = f" (container {task.container})" if task.attached else ""
            raise Invalid(f"network {network.id} is in use by task {task.id}{who}")
    tx.delete(network)
    cursor = tx.get(Cursor, network.id)
    if cursor is not None:
        tx.delete(cursor)
    return network


def given_subnets(spec: NetworkSpec) -> tuple[Subnet, ...]:
    """The subnets the user named, at most one per family; raises `Invalid`."""
    found = tuple(_subnet(config) for config in spec.ipam if config.subnet)
    loose = [config for config in spec.ipam if not config.subnet]
    if any(config.gateway or config.ip_range or config.auxiliary_addresses for config in loose):
        raise Invalid("invalid network: a gateway, IP range or auxiliary address needs its subnet")
    if len({subnet.prefix.version for subnet in found}) < len(found):
        raise Unsupported("several subnets of one family on a network are not supported: give one IPv4 and one IPv6")
    return found


def _subnet(config: IPAMConfig) -> Subnet:
    prefix = parse_prefix(config.subnet)
    smallest = SMALLEST_V4 if prefix.version == 4 else SMALLEST_V6
    if prefix.prefixlen > smallest:
        raise Invalid(f"invalid subnet {prefix}: too small, use /{smallest} or larger")
    reserved = pools.overlapping(prefix, NOT_FOR_HOSTS)
    if reserved is not None:
        raise Invalid(f"invalid subnet {prefix}: not a range for hosts, because of {reserved}")
    aside = tuple(parse_address(text, "auxiliary address") for text in config.auxiliary_addresses.values())
    for address in aside:
        if not _holds(prefix, address):
            raise Invalid(f"invalid auxiliary address {address}: it is not a host address of subnet {prefix}")
    gateway = parse_address(config.gateway, "gateway") if config.gateway else first_host(prefix)
    while not config.gateway and gateway in aside:
        gateway += 1
    if gateway in aside:
        raise Invalid(f"invalid auxiliary address {gateway}: it is the gateway of subnet {prefix}")
    if not _holds(prefix, gateway):
        raise Invalid(f"invalid gateway {gateway}: it is not a host address of subnet {prefix}")
    ip_range = parse_prefix(config.ip_range, "IP range") if config.ip_range else None
    if ip_range is not None and (
        ip_range.version != prefix.version
        or ip_range.prefixlen < prefix.prefixlen
        or pools.overlapping(ip_range, [prefix]) is None
    ):
        raise Invalid(f"invalid IP range {ip_range}: it is not inside subnet {prefix}")
    return Subnet(prefix=prefix, gateway=gateway, ip_range=ip_range, reserved=aside)


def first_host(prefix: Prefix) -> Address:
    """The gateway's place unless the user says otherwise."""
    return prefix.network_address + 1


def taken(view: View) -> Iterable[Prefix]:
    """What new subnets must stay clear of: other networks, and what nodes use themselves."""
    for network in view.all(Network):
        if network.spec.node_local:
            continue
        yield from (subnet.prefix for subnet in network.subnets or given_subnets(network.spec))
    for node in view.all(Node):
        yield from node.description.gateway
        for text in {str(node.vtep or ""), node.addr} - {""}:
            try:
                yield ipaddress.ip_network(text)
            except ValueError:
                continue  # a name


def _check_free(tx: Transaction, prefix: Prefix) -> None:
    for network in tx.all(Network):
        other = pools.overlapping(prefix, (subnet.prefix for subnet in network.subnets))
        if other is not None:
            raise Invalid(
                f"invalid subnet {prefix}: Pool overlaps with other one on this address space: {other} of network "
                f"{network.spec.name}; choose another, or leave --subnet out"
            )
    for node in tx.all(Node):
        other = pools.overlapping(prefix, node.description.gateway)
        if other is not None:
            raise Invalid(
                f"invalid subnet {prefix}: it overlaps with {other}, which node {node.description.hostname} uses for "
                "the way out of its containers; choose another, or leave --subnet out"
            )
    other = pools.overlapping(prefix, taken(tx))
    if other is not None:
        raise Invalid(f"invalid subnet {prefix}: it contains {other.network_address}, the address of a node")


def _check_ingress(tx: Transaction, spec: NetworkSpec) -> None:
    if spec.attachable:
        raise Invalid("ingress network cannot be attachable")
    if spec.internal:
        raise Invalid("ingress network cannot be internal")
    existing = ports.ingress(tx)
    if existing is not None:
        raise Conflict(f"ingress network ({existing.id}) is already present")


def _check_options(tx: Transaction, spec: NetworkSpec) -> None:
    if ENCRYPTED in spec.options:
        raise Unsupported(NOT_ENCRYPTED)
    for option in sorted(spec.options.keys() - OPTIONS):
        raise Unsupported(f"network option {option!r} is not supported: there are {', '.join(OPTIONS)}")
    mtu = spec.options.get(MTU_OPTION)
    if mtu is not None and not (mtu.isascii() and mtu.isdigit() and len(mtu) <= 5 and int(mtu) in MTU):
        raise Invalid(f"invalid {MTU_OPTION} {mtu!r}: use {MTU.start} to {MTU.stop - 1}")
    vni = wanted_vni(spec)
    for network in tx.all(Network):
        if vni is not None and network.vni == vni:
            raise Invalid(f"VNI {vni} is already in use by network {network.spec.name}")


def wanted_vni(spec: NetworkSpec) -> int | None:
    """The VNI the user asks for."""
    text = spec.options.get(VNI_OPTION)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 8 and 0 < int(text) <= MAX_VNI):
        raise Invalid(f"invalid {VNI_OPTION} {text!r}: use a number from 1 to {MAX_VNI}")
    return int(text)


def _holds(prefix: Prefix, address: Address) -> bool:
    if address.version != prefix.version:
        return False
    last = int(prefix.broadcast_address) - isinstance(prefix, IPv4Network)
    return int(prefix.network_address) < int(address) <= last
