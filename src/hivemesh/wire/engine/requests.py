"""What clients send: bodies of the Docker Engine API as typed values."""

from typing import Any

import msgspec

from hivemesh.model.cluster import SwarmSpec
from hivemesh.model.errors import Forbidden, Invalid, Unsupported
from hivemesh.model.network import OVERLAY, IPAMConfig, NetworkSpec
from hivemesh.model.node import Availability, NodeSpec
from hivemesh.model.secret import Payload, PayloadSpec
from hivemesh.model.service import ServiceSpec, Spec
from hivemesh.wire.engine import localnets, refused, strict

MODES = ("Replicated", "Global", "ReplicatedJob", "GlobalJob")


class SwarmInit(Spec, frozen=True, kw_only=True):
    """`POST /swarm/init`. Addresses are still text: an address or an interface, with or without a port."""

    listen_addr: str = "0.0.0.0:2377"
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0  # 0: 4789
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0  # 0: 24
    force_new_cluster: bool = False
    spec: SwarmSpec = SwarmSpec()
    auto_lock_managers: bool = False
    availability: Availability = "active"


class SwarmJoin(Spec, frozen=True, kw_only=True):
    """`POST /swarm/join`."""

    listen_addr: str = "0.0.0.0:2377"
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: tuple[str, ...] = ()
    join_token: str = ""
    availability: Availability = "active"

    def __repr__(self) -> str:
        """Without the token."""
        return f"SwarmJoin(remote_addrs={self.remote_addrs!r})"


class SwarmUnlock(Spec, frozen=True, kw_only=True):
    """`POST /swarm/unlock`."""

    unlock_key: str = ""

    def __repr__(self) -> str:
        """Without the key."""
        return "SwarmUnlock(...)"


class IPAM(Spec, frozen=True, kw_only=True):
    driver: str = "default"
    config: tuple[IPAMConfig, ...] = ()


class NetworkCreate(Spec, frozen=True, kw_only=True):
    """`POST /networks/create` of a network of the swarm."""

    name: str = ""
    driver: str = OVERLAY
    scope: str = ""
    check_duplicate: bool = False  # gone from the API; every name is checked
    enable_ipv4: bool = msgspec.field(default=True, name="EnableIPv4")
    enable_ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: IPAM = msgspec.field(default=IPAM(), name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: localnets.ConfigFrom = localnets.ConfigFrom()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


def swarm_init(body: Any) -> SwarmInit:
    """Raises `Unsupported` for what this version does not do."""
    if isinstance(body, dict) and isinstance(spec := strict.pick(body, "Spec"), dict):
        body = {key: value for key, value in body.items() if key.lower() != "spec"} | {"Spec": _said(spec)}
    request = strict.read(body, SwarmInit, "InitRequest")
    _without_external(request.spec)
    return request


def _said(value: Any) -> Any:
    """Without what is zero or empty: at `init`, unlike at an update, that means the default."""
    if isinstance(value, dict):
        return {key: _said(inner) for key, inner in value.items() if not strict.empty(inner)}
    return value


def swarm_join(body: Any) -> SwarmJoin:
    return strict.read(body, SwarmJoin, "JoinRequest")


def swarm_spec(body: Any) -> SwarmSpec:
    spec = strict.read(body, SwarmSpec, "Spec")
    _without_external(spec)
    return spec


def swarm_unlock(body: Any) -> SwarmUnlock:
    return strict.read(body, SwarmUnlock, "UnlockRequest")


def _without_external(spec: SwarmSpec) -> None:
    if spec.ca_config.external_cas:
        raise Unsupported(
            "CAConfig.ExternalCAs is not supported: the swarm signs its nodes' certificates itself; leave out "
            "--external-ca, or give it your own root with `swarm ca --rotate --ca-cert FILE --ca-key FILE`"
        )


def node_spec(body: Any) -> NodeSpec:
    return strict.read(body, NodeSpec, "NodeSpec")


def service_spec(body: Any) -> ServiceSpec:
    """A service's specification. Networks of the old place (before API 1.44) move to the task template."""
    if not isinstance(body, dict):
        raise Invalid("invalid ServiceSpec: expected an object")
    body = dict(body)
    mode = strict.pick(body, "Mode")
    if isinstance(mode, dict):
        given = [name for name in MODES if strict.pick(mode, name) is not None]
        if len(given) > 1:
            raise Invalid("must specify only one service mode")
    networks = next((body.pop(key) for key in list(body) if key.lower() == "networks"), None)
    template = strict.pick(body, "TaskTemplate")
    if networks and isinstance(template, dict) and not strict.pick(template, "Networks"):
        template["Networks"] = networks
    refused.check(template)
    return strict.read(body, ServiceSpec, "ServiceSpec")


def payload_spec(body: Any, kind: type[Payload]) -> PayloadSpec:
    """The specification of a secret or a config."""
    return strict.read(body, PayloadSpec, f"{kind.__name__}Spec")


def is_of_the_swarm(body: Any) -> bool:
    """Whether a create request asks for a network of the swarm; else it is one of this node."""
    if not isinstance(body, dict):
        raise Invalid("invalid network: expected an object")
    if strict.pick(body, "Scope") == "swarm" or strict.pick(body, "Driver") == OVERLAY:
        return True
    return bool(strict.pick(body, "Ingress")) and not strict.pick(body, "Driver")


def network_spec(body: Any) -> NetworkSpec:
    """The specification of a network of the swarm.

    Raises `NotFound` (no such driver), `Forbidden`, or `Unsupported` by the name of what cannot be.
    """
    request = strict.read(body, NetworkCreate, "network")
    driver = request.driver or OVERLAY
    if request.config_only:
        raise Forbidden("a configuration only network holds settings of one node: make it there, without --scope swarm")
    if driver != OVERLAY:
        driver = localnets.driver_of(driver)
    elif request.config_from.network:
        raise Unsupported(
            "ConfigFrom is not supported for an overlay network, which all nodes share: use it with --scope swarm and "
            "the driver bridge or macvlan"
        )
    if not request.enable_ipv4:
        raise Unsupported("EnableIPv4 false is not supported: an overlay network always has IPv4")
    if request.ipam.driver not in ("", "default"):
        raise Unsupported(f"IPAM driver {request.ipam.driver!r} is not supported: use default")
    return NetworkSpec(
        name=request.name.strip(),
        driver=driver,
        labels=request.labels,
        options=request.options,
        ipv6=request.enable_ipv6,
        internal=request.internal,
        attachable=request.attachable,
        ingress=request.ingress,
        ipam=request.ipam.config,
        config_from=request.config_from.network,
    )
