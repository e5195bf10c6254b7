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
from hivemesh.model.service import ContainerSpec, DNSConfig, PortConfig, Protocol
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
ENGINES_OWN = ("", "default", "bridge", "host", "none", "private", "slirp4netns", "pasta")
"""Network modes that name no network."""


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
    ports: tuple[PortConfig, ...]
    restart: RestartRule
    remove: bool  # when it has ended


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
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Everything about a container's network that the engine does not know."""

    mode: str
    networks: tuple[Membership, ...]
    spec: ContainerSpec
    ports: tuple[PortConfig, ...]
    published: tuple[PortConfig, ...]  # with real numbers; none while it does not run
    restart: RestartRule
    restarts: int  # how often it was begun again
    files: Mapping[str, str]  # path inside to file of ours
    namespace: str = ""  # its path; empty while there is none


# --- what a client asks -----------------------------------------------------------------------------------------------


def networks_of(body: Json) -> tuple[str, ...]:
    """The names or ids of the networks that a `containers/create` asks for, the first being its network mode."""
    host = strict.pick(body, "HostConfig") or {}
    mode = str(strict.pick(host, "NetworkMode") or "")
    found = [mode, *sorted(_endpoints(body))]
    return tuple(dict.fromkeys(name for name in found if name not in ENGINES_OWN and ":" not in name))


def wish_of(body: Json) -> Wish:
    """Raises `Invalid` or `Unsupported` naming what cannot be."""
    host = strict.pick(body, "HostConfig") or {}
    endpoints = _endpoints(body)
    mode = str(strict.pick(host, "NetworkMode") or "")
    if strict.pick(body, "MacAddress"):
        raise Unsupported("MacAddress is not supported on networks of the swarm: a MAC follows from the address")
    if strict.pick(host, "Links"):
        raise Unsupported("HostConfig.Links is not supported: give the other container an alias on the network")
    names = networks_of(body)
    return Wish(
        mode=next(iter(names), mode) if mode in ENGINES_OWN else mode,
        networks=tuple(joining(name, endpoints.get(name)) for name in names),
        spec=ContainerSpec(
            hostname=str(strict.pick(body, "Hostname") or ""),
            hosts=tuple(_hosts_line(str(entry)) for entry in strict.pick(host, "ExtraHosts") or ()),
            dns_config=_dns(host),
        ),
        ports=_ports(body, host),
        restart=restart_rule(strict.pick(host, "RestartPolicy")),
        remove=bool(strict.pick(host, "AutoRemove")),
    )


def joining(network: str, config: Any) -> Joining:
    """An `EndpointConfig`. Raises `Invalid` or `Unsupported`."""
    if config is not None and not isinstance(config, dict):
        raise Invalid(f"invalid endpoint configuration of network {network}: expected an object")
    config = config or {}
    for field in ("Links", "DriverOpts", "MacAddress", "GwPriority"):
        if not strict.empty(strict.pick(config, field)):
            raise Unsupported(f"{field} is not supported on networks of the swarm (network {network})")
    ipam = strict.pick(config, "IPAMConfig") or {}
    if not strict.empty(strict.pick(ipam, "LinkLocalIPs")):
        raise Unsupported(f"LinkLocalIPs is not supported on networks of the swarm (network {network})")
    addresses = []
    for field, version in (("IPv4Address", 4), ("IPv6Address", 6)):
        text = strict.pick(ipam, field)
        if text:
            address = parse_address(str(text))
            if address.version != version:
                raise Invalid(f"invalid {field} {text!r}: it is of the other family")
            addresses.append(address)
    aliases = tuple(dict.fromkeys(str(alias) for alias in strict.pick(config, "Aliases") or ()))
    return Joining(network=network, aliases=aliases, addresses=tuple(addresses))


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
    found = strict.pick(strict.pick(body, "NetworkingConfig") or {}, "EndpointsConfig") or {}
    if not isinstance(found, dict):
        raise Invalid("invalid NetworkingConfig.EndpointsConfig: expected an object")
    return found


def _dns(host: Json) -> DNSConfig | None:
    servers = tuple(str(parse_address(str(text), "DNS server")) for text in strict.pick(host, "Dns") or ())
    search, options = (tuple(map(str, strict.pick(host, key) or ())) for key in ("DnsSearch", "DnsOptions"))
    if not (servers or search or options):
        return None
    return DNSConfig(nameservers=servers, search=search, options=options)


def _hosts_line(entry: str) -> str:
    """`name:address` (or `name=address`) as a line of /etc/hosts."""
    name, found, address = entry.partition("=" if "=" in entry else ":")
    if not name or not found or any(character.isspace() for character in name):
        raise Invalid(f"invalid extra host {entry!r}: expected name:address")
    if address == "host-gateway":
        raise Unsupported("host-gateway is not supported on networks of the swarm: give the node's address")
    return f"{parse_address(address.strip('[]'), 'extra host address')} {name}"


def _ports(body: Json, host: Json) -> tuple[PortConfig, ...]:
    found: dict[tuple[Protocol, int, int], PortConfig] = {}

    def publish(key: str, number: int) -> None:
        target, protocol = _port_key(key)
        found[protocol, target, number] = PortConfig(
            protocol=protocol, target_port=target, published_port=number, publish_mode="host"
        )

    bindings = strict.pick(host, "PortBindings") or {}
    for key, wanted in bindings.items():
        for binding in wanted or [{}]:
            address, text = str(strict.pick(binding, "HostIp") or ""), str(strict.pick(binding, "HostPort") or "")
            if address not in ("", "0.0.0.0", "::"):
                raise Unsupported(
                    f"publishing port {key} on {address} only is not supported for containers on networks of the "
                    "swarm: leave the address out"
                )
            if text and not (text.isascii() and text.isdigit() and int(text) < 65536):
                raise Invalid(f"invalid port {text!r} for {key}: expected one number from 0 to 65535")
            publish(key, int(text or 0))
    if strict.pick(host, "PublishAllPorts"):
        for key in strict.pick(body, "ExposedPorts") or {}:
            if key not in bindings:
                publish(key, 0)
    return tuple(found.values())


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
    host = strict.pick(body, "HostConfig") or {}
    changed = _without(
        host, "NetworkMode", "Binds", "Sysctls", "PortBindings", "PublishAllPorts", "RestartPolicy",
        "Dns", "DnsSearch", "DnsOptions", "ExtraHosts", "Links",
    )  # fmt: skip
    binds = [str(bind) for bind in strict.pick(host, "Binds") or ()]
    taken = {bind.split(":")[1] for bind in binds if ":" in bind}
    taken |= {str(strict.pick(mount, "Target")) for mount in strict.pick(host, "Mounts") or ()}
    changed["NetworkMode"] = f"ns:{namespace}"
    changed["Binds"] = binds + [f"{source}:{target}" for target, source in files.items() if target not in taken]
    changed["Sysctls"] = SYSCTLS | (strict.pick(host, "Sysctls") or {})
    result["HostConfig"] = changed
    result["Labels"] = (strict.pick(body, "Labels") or {}) | {LABEL: owner}
    return result


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
        },
        "NetworkSettings": settings
        | NO_BRIDGE
        | {
            "SandboxID": shown.namespace.rpartition("/")[2],
            "SandboxKey": shown.namespace,
            "Ports": _port_map(shown.published, both=True),
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
            {"IP": address, "PrivatePort": port.target_port, "PublicPort": port.published_port, "Type": port.protocol}
            for port in shown.published
            for address in ("0.0.0.0", "::")
        ],
    }


def _mounts(value: Json, shown: Shown) -> list[Any]:
    ours = set(shown.files.values())
    return [mount for mount in value.get("Mounts") or () if mount.get("Source") not in ours]


def _port_map(ports: Iterable[PortConfig], *, both: bool = False) -> Json:
    found: Json = {}
    for port in ports:
        number = str(port.published_port or "")
        for address in ("0.0.0.0", "::") if both else ("",):
            binding = {"HostIp": address, "HostPort": number}
            found.setdefault(f"{port.target_port}/{port.protocol}", []).append(binding)
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
        "GwPriority": 0,
        "NetworkID": member.network_id,
        "EndpointID": member.endpoint_id,
        "Gateway": "",  # the way out of the node is not through this network
        "IPAddress": v4,
        "IPPrefixLen": int(length4 or 0),
        "IPv6Gateway": "",
        "GlobalIPv6Address": v6,
        "GlobalIPv6PrefixLen": int(length6 or 0),
        "DNSNames": list(member.names) or None,
    }
