"""Containers on networks of ours, in the Docker Engine API's words: what a client asks, what the engine is asked, and
what the client is shown. Pure.

The engine runs such a container in a namespace that we made. So everything about its network is taken out of what the
engine is told, and put back into what it says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from hivemesh.model.addr import parse_address
from hivemesh.model.errors import Invalid, Unsupported
from hivemesh.model.local import DEFAULT_BRIDGE, PublishedPort
from hivemesh.model.service import ContainerSpec, DNSConfig, Protocol
from hivemesh.wire.control import Joining
from hivemesh.wire.engine import strict

Json = dict[str, Any]
Restarts = Literal["no", "always", "unless-stopped", "on-failure"]

LABEL = "hivemesh.attached"
"""On every container in a namespace of ours that is no task's; its value is the id of that namespace's owner."""
SYSCTLS = {"net.ipv4.ping_group_range": "0 2147483647"}
"""As every sandbox has it; the engine would write its own default into it."""
NO_BRIDGE = {
    "EndpointID": "",
    "Gateway": "",
    "GlobalIPv6Address": "",
    "GlobalIPv6PrefixLen": 0,
    "IPAddress": "",
    "IPPrefixLen": 0,
    "IPv6Gateway": "",
    "MacAddress": "",
    "SecondaryIPAddresses": None,
}
"""What Docker shows of the default bridge to containers that are not on it; the engine guesses from the namespace."""
PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
ENGINES_OWN = ("host", "none", "private", "slirp4netns", "pasta")
"""Network modes that name no network: the engine knows what to do."""
UNNAMED = ("", "default")
"""Network modes that mean the default bridge."""
HOST_GATEWAY = "host-gateway"
"""For an address in an extra host: the node's, on the network through which the container leaves."""


class RestartRule(msgspec.Struct, frozen=True, kw_only=True):
    """When a container that ended by itself begins again; `retries` 0 means without end."""

    name: Restarts = "no"
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client asks of a container's network."""

    mode: str  # as the client wrote it
    networks: tuple[Joining, ...]
    spec: ContainerSpec  # what concerns names
    ports: tuple[PublishedPort, ...]
    restart: RestartRule
    remove: bool  # when it has ended
    links: tuple[tuple[str, str], ...] = ()  # container and alias


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A container on one network, for showing. Addresses and ids are empty while it does not run."""

    name: str
    network_id: str
    aliases: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()  # addresses the user insists on
    endpoint_id: str = ""
    mac: str = ""
    v4: str = ""  # with prefix length, as the next
    v6: str = ""
    gateway4: str = ""  # of a network through which the container may leave the node
    gateway6: str = ""
    priority: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Everything about a container's network that the engine does not know."""

    mode: str
    networks: tuple[Membership, ...]
    spec: ContainerSpec
    ports: tuple[PublishedPort, ...]
    published: tuple[PublishedPort, ...]  # with real numbers; none while it does not run
    restart: RestartRule
    restarts: int  # how often it was begun again
    files: Mapping[str, str]  # path inside to file of ours
    namespace: str = ""  # its path; empty while there is none
    links: tuple[str, ...] = ()  # container:alias


# --- what a client asks -----------------------------------------------------------------------------------------------


def networks_of(body: Json) -> tuple[str, ...]:
    """The names or ids of the networks that a `containers/create` asks for, the first being its network mode.

    None when it asks for no network of ours: the node's own stack, nothing at all, or another container's.
    """
    host = strict.section(body, "HostConfig")
    mode = str(strict.pick(host, "NetworkMode") or "")
    if mode in ENGINES_OWN or ":" in mode or strict.pick(body, "NetworkDisabled"):
        return ()
    endpoints = sorted(name for name in _endpoints(body) if name not in UNNAMED)
    if mode in UNNAMED:
        mode = endpoints[0] if len(endpoints) == 1 else DEFAULT_BRIDGE
    found = tuple(dict.fromkeys((mode, *endpoints)))
    if len(found) > 1 and any(name in ENGINES_OWN for name in found):
        raise Invalid("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
    return found


def wish_of(body: Json) -> Wish:
    """Raises `Invalid` or `Unsupported` naming what cannot be."""
    host = strict.section(body, "HostConfig")
    endpoints = _endpoints(body)
    mode = str(strict.pick(host, "NetworkMode") or "")
    names = networks_of(body)
    if mode in UNNAMED:  # what a client says of the unnamed network, it says of the one it gets
        endpoints = {names[0]: next((endpoints[name] for name in UNNAMED if name in endpoints), None)} | endpoints
    joinings = [joining(name, endpoints.get(name)) for name in names]
    mac = str(strict.pick(body, "MacAddress") or "")
    if mac and not joinings[0].mac:
        joinings[0] = msgspec.structs.replace(joinings[0], mac=mac)
    links = [_link(text) for text in strict.entries(host, "Links")]
    for name in names:
        links += [_link(text) for text in strict.entries(endpoints.get(name) or {}, "Links")]
    return Wish(
        mode=names[0] if mode in UNNAMED else mode,
        networks=tuple(joinings),
        links=tuple(dict.fromkeys(links)),
        spec=ContainerSpec(
            hostname=str(strict.pick(body, "Hostname") or ""),
            hosts=tuple(_hosts_line(str(entry)) for entry in strict.entries(host, "ExtraHosts")),
            dns_config=_dns(host),
        ),
        ports=_ports(body, host),
        restart=restart_rule(strict.section(host, "RestartPolicy")),
        remove=bool(strict.pick(host, "AutoRemove")),
    )


def joining(network: str, config: Any) -> Joining:
    """An `EndpointConfig`. Raises `Invalid` or `Unsupported`."""
    if config is not None and not isinstance(config, dict):
        raise Invalid(f"invalid endpoint configuration of network {network}: expected an object")
    config = config or {}
    if not strict.empty(options := strict.pick(config, "DriverOpts")):
        names = ", ".join(options) if isinstance(options, dict) else options
        raise Unsupported(f"the driver option {names} is not supported for a container on network {network}")
    ipam = strict.section(config, "IPAMConfig")
    if not strict.empty(strict.pick(ipam, "LinkLocalIPs")):
        raise Unsupported(f"LinkLocalIPs is not supported (network {network})")
    addresses = []
    for field, version in (("IPv4Address", 4), ("IPv6Address", 6)):
        text = strict.pick(ipam, field)
        if text:
            address = parse_address(str(text))
            if address.version != version:
                raise Invalid(f"invalid {field} {text!r}: it is of the other family")
            addresses.append(address)
    aliases = tuple(dict.fromkeys(str(alias) for alias in strict.entries(config, "Aliases")))
    priority = strict.pick(config, "GwPriority") or 0
    if not isinstance(priority, int):
        raise Invalid(f"invalid GwPriority {priority!r} of network {network}: expected a number")
    mac = str(strict.pick(config, "MacAddress") or "")
    return Joining(network=network, aliases=aliases, addresses=tuple(addresses), mac=mac, priority=priority)


def _link(text: Any) -> tuple[str, str]:
    """`container:alias`, or a container that goes by its own name."""
    container, _, alias = str(text).partition(":")
    container = container.strip("/")
    if not container or ":" in alias:
        raise Invalid(f"bad format for links: {text}")
    return container, alias or container


def restart_rule(value: Any) -> RestartRule:
    """A `RestartPolicy`. Raises `Invalid`."""
    name, retries = str(strict.pick(value or {}, "Name") or "no"), strict.pick(value or {}, "MaximumRetryCount") or 0
    if name not in ("no", "always", "unless-stopped", "on-failure"):
        raise Invalid(
            f"invalid restart policy: unknown policy {name!r}; use one of no, always, on-failure, unless-stopped"
        )
    if not isinstance(retries, int) or retries < 0 or (retries and name != "on-failure"):
        raise Invalid("invalid restart policy: a maximum retry count goes with on-failure only, and is not negative")
    return RestartRule(name=name, retries=retries)  # type: ignore[arg-type]


def _endpoints(body: Json) -> Json:
    return strict.section(strict.section(body, "NetworkingConfig"), "EndpointsConfig")


def _dns(host: Json) -> DNSConfig | None:
    servers = tuple(str(parse_address(str(text), "DNS server")) for text in strict.entries(host, "Dns"))
    search, options = (tuple(map(str, strict.entries(host, key))) for key in ("DnsSearch", "DnsOptions"))
    if not (servers or search or options):
        return None
    return DNSConfig(nameservers=servers, search=search, options=options)


def _hosts_line(entry: str) -> str:
    """`name:address` (or `name=address`) as a line of /etc/hosts."""
    name, found, address = entry.partition("=" if "=" in entry else ":")
    if not name or not found or any(character.isspace() for character in name):
        raise Invalid(f"invalid extra host {entry!r}: expected name:address")
    if address == HOST_GATEWAY:
        return f"{HOST_GATEWAY} {name}"
    return f"{parse_address(address.strip('[]'), 'extra host address')} {name}"


def _ports(body: Json, host: Json) -> tuple[PublishedPort, ...]:
    found: dict[PublishedPort, None] = {}

    def publish(key: str, first: int = 0, last: int = 0, address: str = "") -> None:
        target, protocol = _port_key(key)
        at = parse_address(address.strip("[]"), "address to publish on") if address else None
        found[PublishedPort(protocol=protocol, target=target, port=first, last=last, address=at)] = None

    bindings = strict.section(host, "PortBindings")
    for key in bindings:
        for binding in strict.entries(bindings, key) or [{}]:
            if not isinstance(binding, dict):
                raise Invalid(f"invalid PortBindings of {key}: expected objects")
            address, text = str(strict.pick(binding, "HostIp") or ""), str(strict.pick(binding, "HostPort") or "")
            publish(key, *_host_ports(text, key), address=address)
    if strict.pick(host, "PublishAllPorts"):
        for key in strict.section(body, "ExposedPorts"):
            if key not in bindings:
                publish(key)
    return tuple(found)


def _host_ports(text: str, key: str) -> tuple[int, int]:
    """One number, or the first and last of a range of which any will do."""
    first, dash, last = text.partition("-")
    numbers = [first or "0", last] if dash else [first or "0"]
    if not all(number.isascii() and number.isdigit() and int(number) < 65536 for number in numbers):
        raise Invalid(f"invalid port {text!r} for {key}: expected a number from 0 to 65535, or a range of them")
    if dash and int(last) < int(first or 0):
        raise Invalid(f"invalid port range {text!r} for {key}: it ends before it begins")
    return int(first or 0), int(last) if dash and last != first else 0


def _port_key(key: str) -> tuple[int, Protocol]:
    number, _, protocol = key.partition("/")
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 65536) or (protocol or "tcp") not in PROTOCOLS:
        raise Invalid(f"invalid port {key!r}: expected a number from 1 to 65535 and tcp, udp or sctp")
    return int(number), PROTOCOLS[protocol or "tcp"]


# --- what the engine is asked -----------------------------------------------------------------------------------------


def engine_body(body: Json, owner: str, namespace: str, files: Mapping[str, str]) -> Json:
    """`body` of `containers/create` for the engine: in the namespace at that path, with our files, marked with `owner`.

    A file stays out where the user mounts one of his own.
    """
    result = _without(body, "NetworkingConfig", "HostConfig", "Labels", "MacAddress", "NetworkDisabled")
    host = strict.section(body, "HostConfig")
    changed = _without(
        host, "NetworkMode", "Binds", "Sysctls", "PortBindings", "PublishAllPorts", "RestartPolicy",
        "Dns", "DnsSearch", "DnsOptions", "ExtraHosts", "Links",
    )  # fmt: skip
    changed["NetworkMode"] = f"ns:{namespace}"
    changed["Binds"] = _binds(host, files)
    changed["Sysctls"] = SYSCTLS | strict.section(host, "Sysctls")
    result["HostConfig"] = changed
    result["Labels"] = strict.section(body, "Labels") | {LABEL: owner}
    return result


def with_files(body: Json, files: Mapping[str, str]) -> Json:
    """`body` of a container that shares the network of another of ours: with the other's files."""
    host = dict(strict.section(body, "HostConfig"))
    return _without(body, "HostConfig") | {"HostConfig": _without(host, "Binds") | {"Binds": _binds(host, files)}}


def _binds(host: Json, files: Mapping[str, str]) -> list[str]:
    binds = [str(bind) for bind in strict.entries(host, "Binds")]
    taken = {bind.split(":")[1] for bind in binds if ":" in bind}
    taken |= {str(strict.pick(mount, "Target")) for mount in strict.entries(host, "Mounts") if isinstance(mount, dict)}
    return binds + [f"{source}:{target}" for target, source in files.items() if target not in taken]


def _without(value: Json, *names: str) -> Json:
    dropped = {name.lower() for name in names}
    return {key: inner for key, inner in value.items() if key.lower() not in dropped}


# --- what the client is shown -----------------------------------------------------------------------------------------


def inspected(value: Json, shown: Shown) -> Json:
    """The engine's `containers/{id}/json`, with what we know better."""
    dns = shown.spec.dns_config or DNSConfig()
    host = value.get("HostConfig") or {}
    settings = value.get("NetworkSettings") or {}
    return value | {
        "RestartCount": shown.restarts,
        "ResolvConfPath": shown.files.get("/etc/resolv.conf", ""),
        "HostsPath": shown.files.get("/etc/hosts", ""),
        "Mounts": _mounts(value, shown),
        "HostConfig": host
        | {
            "NetworkMode": shown.mode,
            "Binds": [bind for bind in host.get("Binds") or () if bind.partition(":")[0] not in shown.files.values()],
            "PortBindings": _port_map(shown.ports),
            "RestartPolicy": {"Name": shown.restart.name, "MaximumRetryCount": shown.restart.retries},
            "Dns": list(dns.nameservers),
            "DnsSearch": list(dns.search),
            "DnsOptions": list(dns.options),
            "ExtraHosts": [":".join(reversed(line.split(" ", 1))) for line in shown.spec.hosts],
            "Links": list(shown.links) or None,
        },
        "NetworkSettings": settings
        | NO_BRIDGE
        | _on_default_bridge(shown)
        | {
            "SandboxID": shown.namespace.rpartition("/")[2],
            "SandboxKey": shown.namespace,
            "Ports": _exposed(value) | _port_map(shown.published, shown),
            "Networks": {member.name: _endpoint(member) for member in shown.networks},
        },
    }


def listed(value: Json, shown: Shown) -> Json:
    """An element of the engine's `containers/json`, with what we know better."""
    return value | {
        "HostConfig": {"NetworkMode": shown.mode},
        "Mounts": _mounts(value, shown),
        "NetworkSettings": {"Networks": {member.name: _endpoint(member) for member in shown.networks}},
        "Ports": [
            {"IP": address, "PrivatePort": port.target, "PublicPort": port.port, "Type": port.protocol}
            for port in shown.published
            for address in _addresses(port, shown)
        ],
    }


def _mounts(value: Json, shown: Shown) -> list[Any]:
    ours = set(shown.files.values())
    return [mount for mount in value.get("Mounts") or () if mount.get("Source") not in ours]


def _exposed(value: Json) -> Json:
    """Ports that the image or the user names, published or not."""
    return dict.fromkeys((value.get("Config") or {}).get("ExposedPorts") or {})


def _on_default_bridge(shown: Shown) -> Json:
    """What stood at the top before there were other networks."""
    member = next((member for member in shown.networks if member.name == DEFAULT_BRIDGE), None)
    if member is None:
        return {}
    endpoint = _endpoint(member)
    return {key: endpoint[key] for key in NO_BRIDGE if key in endpoint}


def _addresses(port: PublishedPort, shown: Shown) -> tuple[str, ...]:
    """Where a port is reached: on all addresses of the families that the container has."""
    if port.address is not None:
        return (str(port.address),)
    own = any(member.gateway4 or member.gateway6 for member in shown.networks)
    six = not own or any(member.gateway6 and member.v6 for member in shown.networks)
    return ("0.0.0.0", "::") if six else ("0.0.0.0",)


def _port_map(ports: Iterable[PublishedPort], shown: Shown | None = None) -> Json:
    """Ports and where they are reached; without `shown`, as the user wrote it."""
    found: Json = {}
    for port in ports:
        number = f"{port.port}-{port.last}" if port.last else str(port.port or "")
        plain = ("" if port.address is None else str(port.address),)
        for address in plain if shown is None else _addresses(port, shown):
            binding = {"HostIp": address, "HostPort": number}
            found.setdefault(f"{port.target}/{port.protocol}", []).append(binding)
    return found


def _endpoint(member: Membership) -> Json:
    (v4, _, length4), (v6, _, length6) = member.v4.partition("/"), member.v6.partition("/")
    ipam = {"IPv6Address" if ":" in address else "IPv4Address": address for address in member.wanted}
    return {
        "IPAMConfig": ipam or None,
        "Links": None,
        "Aliases": list(member.aliases) or None,
        "MacAddress": member.mac,
        "DriverOpts": None,
        "GwPriority": member.priority,
        "NetworkID": member.network_id,
        "EndpointID": member.endpoint_id,
        "Gateway": member.gateway4 if v4 else "",  # through networks of the swarm leads no way out of the node
        "IPAddress": v4,
        "IPPrefixLen": int(length4 or 0),
        "IPv6Gateway": member.gateway6 if v6 else "",
        "GlobalIPv6Address": v6,
        "GlobalIPv6PrefixLen": int(length6 or 0),
        "DNSNames": list(member.names) or None,
    }
