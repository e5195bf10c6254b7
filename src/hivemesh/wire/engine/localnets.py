"""Networks of one node in the Docker Engine API's words: what a client asks, and what it is shown. Pure."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hivemesh.model.addr import Interface
from hivemesh.model.errors import Forbidden, Invalid, NotFound, Unsupported
from hivemesh.model.local import LocalDriver, LocalNetwork, LocalSpec
from hivemesh.model.network import IPAMConfig
from hivemesh.model.service import Spec
from hivemesh.wire.codec import to_builtins
from hivemesh.wire.engine import strict
from hivemesh.wire.engine.objects import timestamp

Json = dict[str, Any]
BUILTIN = {"host": "host", "none": "null"}
"""Networks that are no network: name and driver."""
ONLY_ONE = ("host", "null")
DRIVERS: tuple[LocalDriver, ...] = ("bridge", "macvlan")


class _IPAM(Spec, frozen=True, kw_only=True):
    driver: str = "default"
    config: tuple[IPAMConfig, ...] = ()
    options: dict[str, str] = {}


class ConfigFrom(Spec, frozen=True, kw_only=True):
    """The network whose settings another has."""

    network: str = ""


class _Create(Spec, frozen=True, kw_only=True):
    """`POST /networks/create` of a network of one node."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    check_duplicate: bool = False  # gone from the API; every name is checked
    enable_ipv4: bool = msgspec.field(default=True, name="EnableIPv4")
    enable_ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: _IPAM = msgspec.field(default=_IPAM(), name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigFrom = ConfigFrom()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container on such a network, for showing."""

    container: str
    name: str
    endpoint: str
    mac: str
    addresses: tuple[Interface, ...]


def local_spec(body: Any) -> LocalSpec:
    """Raises `Invalid`, `NotFound` (no such driver), `Forbidden`, or `Unsupported` by the name of what cannot be."""
    request = strict.read(body, _Create, "network")
    known = driver_of(request.driver or "bridge")
    if request.ingress:
        raise Invalid("ingress network can only be of the overlay driver")
    if request.ipam.driver not in ("", "default"):
        raise Unsupported(f"IPAM driver {request.ipam.driver!r} is not supported: use default")
    return LocalSpec(
        name=request.name.strip(),
        driver=known,
        labels=request.labels,
        options=request.options,
        ipv4=request.enable_ipv4,
        ipv6=request.enable_ipv6,
        internal=request.internal,
        attachable=request.attachable,
        ipam=request.ipam.config,
        ipam_options=request.ipam.options,
        config_only=request.config_only,
        config_from=request.config_from.network,
    )


def driver_of(name: str) -> LocalDriver:
    """The driver of that name. Raises `NotFound`, `Forbidden` or `Unsupported`."""
    if name in ONLY_ONE:
        raise Forbidden(f'only one instance of "{name}" network is allowed')
    if name == "ipvlan":
        raise Unsupported("the ipvlan driver is not supported: use macvlan, or bridge")
    known = next((one for one in DRIVERS if one == name), None)
    if known is None:
        raise NotFound(f'plugin "{name}" not found: drivers are {", ".join((*DRIVERS, "overlay"))}')
    return known


def local_network(network: LocalNetwork, endpoints: Iterable[Endpoint] = ()) -> Json:
    """In the shape that `network ls` and `network inspect` share."""
    spec = network.spec
    options = dict(spec.options)
    if network.is_default:
        options["com.docker.network.bridge.default_bridge"] = "true"
    return _network(
        spec.name,
        network.id,
        "null" if spec.config_only else spec.driver,
        created=timestamp(network.created),
        EnableIPv4=spec.ipv4 and not spec.config_only,
        EnableIPv6=spec.ipv6,
        IPAM={"Driver": "default", "Options": spec.ipam_options or None, "Config": _subnets(network)},
        Internal=spec.internal,
        Attachable=spec.attachable,
        ConfigFrom={"Network": spec.config_from},
        ConfigOnly=spec.config_only,
        Containers={
            one.container: {
                "Name": one.name,
                "EndpointID": one.endpoint,
                "MacAddress": one.mac,
                "IPv4Address": _interface(one.addresses, 4),
                "IPv6Address": _interface(one.addresses, 6),
            }
            for one in endpoints
        },
        Options=options,
        Labels=spec.labels,
    )


def builtin_id(name: str) -> str:
    """The same on every node, and for ever."""
    return hashlib.sha256(f"hivemesh network {name}".encode()).hexdigest()


def builtin(name: str, driver: str) -> Json:
    """`host` or `none`."""
    return _network(name, builtin_id(name), driver, created=timestamp(0.0))


def with_builtin(value: Json) -> Json:
    """A container of the engine's, inspected or listed, with the network that its mode stands for."""
    mode = (value.get("HostConfig") or {}).get("NetworkMode")
    settings = value.get("NetworkSettings") or {}
    if mode not in BUILTIN or settings.get("Networks"):
        return value
    endpoint = {
        "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": "", "DriverOpts": None, "GwPriority": 0,
        "NetworkID": builtin_id(mode), "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0,
        "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": None,
    }  # fmt: skip
    return value | {"NetworkSettings": settings | {"Networks": {mode: endpoint}}}


def _network(name: str, identifier: str, driver: str, *, created: str, **more: Any) -> Json:
    return {
        "Name": name,
        "Id": identifier,
        "Created": created,
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": []},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {},
        "Labels": {},
    } | more


def _subnets(network: LocalNetwork) -> list[Json]:
    if network.spec.config_only:
        return [to_builtins(config) for config in network.spec.ipam]
    asked = {config.subnet: config for config in network.spec.ipam}
    found = []
    for subnet in network.subnets:
        shown: Json = {"Subnet": str(subnet.prefix)}
        if subnet.ip_range is not None:
            shown["IPRange"] = str(subnet.ip_range)
        shown["Gateway"] = str(subnet.gateway)
        config = asked.get(str(subnet.prefix))
        if config is not None and config.auxiliary_addresses:
            shown["AuxiliaryAddresses"] = config.auxiliary_addresses
        found.append(shown)
    return found


def _interface(addresses: Sequence[Interface], version: int) -> str:
    return next((str(address) for address in addresses if address.version == version), "")
