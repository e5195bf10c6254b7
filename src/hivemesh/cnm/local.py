"""What a network of one node becomes: its subnets, its device, its addresses. Pure."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hivemesh.dns.names import names_of
from hivemesh.ipam.leases import Leases
from hivemesh.ipam.pools import first_overlap, overlapping
from hivemesh.model.addr import (
    MAC,
    Address,
    Interface,
    Prefix,
    address_of,
    first_v4,
    mac_from,
    mac_of,
    parse_address,
    parse_prefix,
)
from hivemesh.model.errors import Exhausted, Forbidden, HivemeshError, Invalid, Unsupported
from hivemesh.model.ids import EndpointID, NetworkID, short
from hivemesh.model.local import PREDEFINED, LocalNetwork, LocalSpec, MacvlanMode
from hivemesh.model.network import MTU_OPTION, IPAMConfig, Subnet
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import EndpointItem
from hivemesh.wire.resolver import Names

BRIDGE = "com.docker.network.bridge."
NAME, ICC, MASQUERADE, BINDING = (
    f"{BRIDGE}{what}" for what in ("name", "enable_icc", "enable_ip_masquerade", "host_binding_ipv4")
)
PARENT, MODE = "parent", "macvlan_mode"
OPTIONS = {"bridge": (NAME, ICC, MASQUERADE, BINDING, MTU_OPTION), "macvlan": (PARENT, MODE, MTU_OPTION)}
MODES: tuple[MacvlanMode, ...] = ("bridge", "private", "vepa", "passthru")
MAX_LINK = 15
"""Bytes of a link's name (IFNAMSIZ less the end)."""
MTU_RANGE = range(68, 65536)
MIN_MTU6 = 1280
"""What IPv6 needs of every link (RFC 8200)."""
FIRST_POOL = IPv4Network("172.17.0.0/16")
"""The default bridge's, where it is free (Docker's docker0)."""
DEFAULT_DEVICE = "hm_bridge0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a new network meets: those that are here, where this machine's packets go, and its links by name."""

    networks: Sequence[LocalNetwork]
    taken: Collection[Prefix]
    links: Collection[str]
    pool: Sequence[Prefix]


def grant(spec: LocalSpec, identifier: NetworkID, now: float, around: Around) -> LocalNetwork:
    """The network that `spec` asks for; `config_from` is filled in already.

    Raises `Invalid`, `Unsupported` (by the name of what cannot be), `Forbidden` or `Exhausted`.
    """
    network = LocalNetwork(id=identifier, spec=spec, created=now)
    if spec.config_only:  # its options are those of whatever driver will use them
        _parse_ipam(spec)
        return network
    _check_options(spec)
    subnets = _subnets(spec, identifier, around)
    options = spec.options
    mtu = _mtu(options.get(MTU_OPTION, ""), spec)
    fields = {f: getattr(network, f) for f in network.__struct_fields__} | {"subnets": subnets}
    if spec.driver == "macvlan":
        device, own = _parent(spec, identifier, around)
        return LocalNetwork(**fields | {"device": device, "own_parent": own, "mode": _mode(options), "mtu": mtu})
    return LocalNetwork(
        **fields
        | {
            "device": _device(spec, identifier, around),
            "mtu": mtu,
            "icc": _truth(options, ICC),
            "masquerade": _truth(options, MASQUERADE),
            "binding": _binding(options.get(BINDING, "")),
        }
    )


def check(spec: LocalSpec) -> None:
    """What can be said of `spec` without knowing the node that will make it. Raises as `grant`."""
    if spec.config_from:
        check_dependent(spec)
        return
    _check_options(spec)
    _parse_ipam(spec)
    _mtu(spec.options.get(MTU_OPTION, ""), spec)
    if spec.driver == "macvlan":
        _mode(spec.options)
    else:
        _truth(spec.options, ICC)
        _truth(spec.options, MASQUERADE)
        _binding(spec.options.get(BINDING, ""))


def check_dependent(spec: LocalSpec) -> None:
    """Raises `Forbidden` when a network that has its settings from another has some of its own."""
    if spec.config_only or spec.options or spec.ipam or spec.ipv6 or spec.internal:
        raise Forbidden(
            "user-specified configurations are not supported if the network depends on a configuration network"
        )


def default_bridge(identifier: NetworkID, now: float, around: Around) -> LocalNetwork:
    """The network of containers that name none."""
    pool = (FIRST_POOL, *around.pool)
    around = Around(networks=around.networks, taken=around.taken, links=around.links, pool=pool)
    spec = LocalSpec(name="bridge", options={NAME: DEFAULT_DEVICE, ICC: "true", MASQUERADE: "true"})
    return grant(spec, identifier, now, around)


def check_name(name: str) -> None:
    """Raises `Invalid` or `Forbidden` for a name that no network can have."""
    if not name:
        raise Invalid("network name cannot be empty")
    if "/" in name or any(character.isspace() for character in name):
        raise Invalid(f"invalid network name {name!r}: no spaces or slashes")
    if name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network")


# --- options ----------------------------------------------------------------------------------------------------------


def _check_options(spec: LocalSpec) -> None:
    known = OPTIONS[spec.driver]
    for option in spec.options:
        if option not in known:
            raise Unsupported(
                f"the option {option} is not supported by the {spec.driver} driver: use one of {', '.join(known)}"
            )
    if spec.ipam_options:
        raise Unsupported(f"IPAM option {next(iter(spec.ipam_options))} is not supported: leave it out")
    if not spec.ipv4:
        raise Unsupported("EnableIPv4 false is not supported: a network of this node always has IPv4")


def _truth(options: dict[str, str], name: str) -> bool:
    text = options.get(name, "true").lower()
    if text in ("true", "1", "t"):
        return True
    if text in ("false", "0", "f"):
        return False
    raise Invalid(f"invalid value {options[name]!r} for {name}: expected true or false")


def _mtu(text: str, spec: LocalSpec) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and int(text) in MTU_RANGE):
        raise Invalid(f"invalid MTU {text!r}: expected a number from {MTU_RANGE.start} to {MTU_RANGE.stop - 1}")
    if spec.ipv6 and int(text) < MIN_MTU6:
        raise Invalid(f"invalid MTU {text}: a network with IPv6 needs {MIN_MTU6} at least")
    return int(text)


def _binding(text: str) -> IPv4Address | None:
    if not text:
        return None
    address = parse_address(text, BINDING)
    if not isinstance(address, IPv4Address):
        raise Invalid(f"invalid {BINDING} {text!r}: expected an IPv4 address")
    return None if address.is_unspecified else address


def _device(spec: LocalSpec, identifier: NetworkID, around: Around) -> str:
    name = spec.options.get(NAME, "")
    if not name:
        return f"hm-{identifier[:12]}"
    _check_link(name, NAME)
    for other in around.networks:
        if other.device == name:
            raise Invalid(f"bridge name {name} is already used by network {other.name}: choose another with {NAME}")
    if name in around.links:
        raise Invalid(f"an interface {name} exists on this machine and is not ours: choose another with {NAME}")
    return name


def _parent(spec: LocalSpec, identifier: NetworkID, around: Around) -> tuple[str, bool]:
    name = spec.options.get(PARENT, "")
    if not name:
        return f"hm-{identifier[:12]}", True
    _check_link(name, PARENT)
    if name not in around.links:
        raise Invalid(f"there is no interface {name} on this machine to be the parent of network {spec.name}")
    for other in around.networks:
        if other.spec.driver == "macvlan" and other.device == name:
            raise Invalid(f"network {other.name} is already using parent interface {name}")
    return name, False


def _mode(options: dict[str, str]) -> MacvlanMode:
    text = options.get(MODE, "") or "bridge"
    for mode in MODES:
        if text == mode:
            return mode
    raise Invalid(f"unknown macvlan mode {text!r}: use one of {', '.join(MODES)}")


def _check_link(name: str, option: str) -> None:
    if len(name.encode()) > MAX_LINK or name in (".", "..") or any(c.isspace() or c in "/:" for c in name):
        raise Invalid(f"invalid {option} {name!r}: an interface has {MAX_LINK} bytes at most, and no spaces or slashes")


# --- subnets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    prefix: Prefix
    gateway: Address | None
    given: Prefix | None
    reserved: tuple[Address, ...]


def _parse_ipam(spec: LocalSpec) -> list[_Asked]:
    found = []
    for config in spec.ipam:
        if not config.subnet:
            if config.gateway or config.ip_range or config.auxiliary_addresses:
                raise Invalid("invalid network config: a gateway, ip-range or auxiliary address needs a subnet")
            continue
        found.append(_parse(config))
    overlap = first_overlap([asked.prefix for asked in found])
    if overlap is not None:
        raise Invalid(f"invalid network config: the subnets {overlap[0]} and {overlap[1]} overlap")
    versions = [asked.prefix.version for asked in found]
    if len(set(versions)) < len(versions):
        raise Unsupported("a network of one node has one subnet of each family: make a second network")
    if 6 in versions and not spec.ipv6:
        raise Invalid("invalid network config: a network with an IPv6 subnet needs --ipv6")
    return found


def _parse(config: IPAMConfig) -> _Asked:
    prefix = parse_prefix(config.subnet)
    if prefix.num_addresses < 4:
        raise Invalid(f"invalid network config: the subnet {prefix} is too small")

    def inside(text: str, what: str) -> Address:
        address = parse_address(text, what)
        if address.version != prefix.version or address not in prefix:
            raise Invalid(f"invalid network config: no matching subnet for {what} {text}")
        return address

    given = parse_prefix(config.ip_range, "ip-range") if config.ip_range else None
    if given is not None and (given.version != prefix.version or not _within(given, prefix)):
        raise Invalid(f"invalid network config: no matching subnet for range {config.ip_range}")
    gateway = inside(config.gateway, "gateway") if config.gateway else None
    reserved = tuple(inside(text, "auxiliary address") for text in config.auxiliary_addresses.values())
    return _Asked(prefix=prefix, gateway=gateway, given=given, reserved=reserved)


def _within(part: Prefix, whole: Prefix) -> bool:
    return part.prefixlen >= whole.prefixlen and part.network_address in whole


def _subnets(spec: LocalSpec, identifier: NetworkID, around: Around) -> tuple[Subnet, ...]:
    asked = _parse_ipam(spec)
    others = [prefix for network in around.networks for prefix in network.prefixes]
    shares_parent = spec.driver == "macvlan"  # its subnet is the one of the wire outside
    for one in asked:
        clash = overlapping(one.prefix, others if shares_parent else [*others, *around.taken])
        if clash is not None:
            raise Forbidden(
                f"invalid pool request: Pool overlaps with other one on this address space: {one.prefix} and {clash}"
            )
    versions = {one.prefix.version for one in asked}
    taken = [*others, *around.taken, *(one.prefix for one in asked)]
    if 4 not in versions:
        prefix = next((pool for pool in around.pool if overlapping(pool, taken) is None), None)
        if prefix is None:
            raise Exhausted("all predefined address pools have been fully subnetted: give one with --subnet")
        asked.append(_Asked(prefix=prefix, gateway=None, given=None, reserved=()))
    if spec.ipv6 and 6 not in versions:
        asked.append(_Asked(prefix=_unique_local(identifier), gateway=None, given=None, reserved=()))
    asked.sort(key=lambda one: one.prefix.version)
    found = []
    for one in asked:
        base = one.given or one.prefix
        first = base.network_address if base.network_address != one.prefix.network_address else base.network_address + 1
        while one.gateway is None and first in one.reserved:
            first += 1
        found.append(Subnet(prefix=one.prefix, gateway=one.gateway or first, ip_range=one.given, reserved=one.reserved))
    return tuple(found)


def _unique_local(identifier: NetworkID) -> IPv6Network:
    """A /64 of our own (RFC 4193), the same as long as the network lives."""
    digest = hashlib.sha256(identifier.encode()).digest()
    return IPv6Network((b"\xfd" + digest[:7] + bytes(8), 64))


# --- endpoints --------------------------------------------------------------------------------------------------------


def attachment(
    network: LocalNetwork,
    held: Iterable[Attachment],
    *,
    endpoint: EndpointID,
    wanted: Sequence[Address] = (),
    mac: str = "",
    priority: int = 0,
    cursor: Callable[[Prefix], int] = lambda prefix: 0,
) -> Attachment:
    """An endpoint on `network`, beside those `held` there. `cursor` is the last address given of a subnet.

    Raises `Invalid` (an address that cannot be), `HivemeshError` in Docker's words (in use), `Exhausted`.
    """
    interfaces: list[Interface] = []
    held = tuple(held)
    if network.mode == "passthru" and not network.is_bridge and held:
        raise HivemeshError(f"network {network.name} in mode passthru has room for one container: it has one already")
    for address in wanted:
        if not any(address in prefix for prefix in network.prefixes if prefix.version == address.version):
            raise Invalid(f"invalid address {address}: it is in no subnet of network {network.name}")
    for subnet in network.subnets:
        leases = Leases(subnet, after=cursor(subnet.prefix))
        for other in held:
            for interface in other.addresses:
                leases.hold(interface)
        mine = next((address for address in wanted if address.version == subnet.prefix.version), None)
        try:
            interfaces.append(leases.acquire() if mine is None else leases.take(mine))
        except Exhausted as error:
            raise Exhausted(f"no available IPv{subnet.prefix.version} addresses on network {network.name}") from error
        except HivemeshError as error:
            raise HivemeshError(f"Address already in use: {error}") from error
    first = first_v4(tuple(interfaces))
    return Attachment(
        endpoint_id=endpoint,
        network_id=network.id,
        addresses=tuple(interfaces),
        mac=MAC(mac) if mac else mac_of(first) if first is not None else mac_from(endpoint),
        priority=priority,
    )


# --- names ------------------------------------------------------------------------------------------------------------


def names_on(networks: Iterable[LocalNetwork], tasks: Collection[Task]) -> dict[NetworkID, Names]:
    """What each network answers, and for each container with links what it alone is answered.

    The default bridge has no names (Docker).
    """
    found = {}
    for network in networks:
        if not network.is_default and not network.spec.config_only:
            members = [(task, a) for task in tasks for a in task.attachments if a.network_id == network.id]
            found[network.id] = names_of(network, (), [_endpoint(task, a) for task, a in members])
    by_owner = {task.id: task for task in tasks}
    for task in tasks:
        if task.local.links:
            addresses = {
                alias.lower(): of for alias, owner in task.local.links.items()
                if (of := _beside(task, by_owner.get(owner)))
            }  # fmt: skip
            found[links_of(task)] = Names(network=links_of(task), name="", addresses=addresses, reverse={})
    return found


def links_of(task: Task) -> NetworkID:
    """The table of names that only this container knows."""
    return NetworkID(f"links of {task.id}")


def _endpoint(task: Task, attachment: Attachment) -> EndpointItem:
    aliases = next((c.aliases for c in task.spec.networks if c.target == attachment.network_id), ())
    own = (task.container,) if task.attached else (task.name, task.service_name)
    names = (*own, short(task.status.container_id), task.spec.container_spec.hostname, *aliases)
    return EndpointItem(
        network=attachment.network_id,
        endpoint=attachment.endpoint_id,
        names=tuple(dict.fromkeys(name for name in names if name)),
        addresses=tuple(map(address_of, attachment.addresses)),
    )


def _beside(task: Task, other: Task | None) -> tuple[Address, ...]:
    """The addresses of `other` on networks that both are on."""
    mine = {attachment.network_id for attachment in task.attachments}
    found = [a for a in other.attachments if a.network_id in mine] if other is not None else []
    return tuple(address_of(interface) for attachment in found for interface in attachment.addresses)


# --- values -----------------------------------------------------------------------------------------------------------


def parse_mac(text: str) -> str:
    """In our form. Raises `Invalid`."""
    parts = text.lower().replace("-", ":").split(":")
    if len(parts) != 6 or any(len(part) != 2 or set(part) - set("0123456789abcdef") for part in parts):
        raise Invalid(f"invalid MAC address {text!r}: expected 02:42:ac:11:00:02")
    if int(parts[0], 16) & 1:
        raise Invalid(f"invalid MAC address {text!r}: it belongs to a group")
    return ":".join(parts)
