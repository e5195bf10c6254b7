"""Networks of one node alone (`bridge`, `macvlan`), and what a plain container has that only its own node knows."""

from ipaddress import IPv4Address
from typing import Literal, cast

import msgspec

from hivemesh.model.addr import Address, Prefix
from hivemesh.model.ids import NetworkID, TaskID
from hivemesh.model.network import IPAMConfig, NetworkSpec, Subnet

LocalDriver = Literal["bridge", "macvlan"]
MacvlanMode = Literal["bridge", "private", "vepa", "passthru"]

DEFAULT_BRIDGE = "bridge"
"""The network of containers that name none."""
PREDEFINED = (DEFAULT_BRIDGE, "host", "none")
"""Names that are always there and nobody's to make or remove."""


class LocalSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for, to be shown again."""

    name: str
    driver: LocalDriver = "bridge"
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    ipam: tuple[IPAMConfig, ...] = ()
    ipam_options: dict[str, str] = {}
    config_only: bool = False  # no network, but settings for others
    config_from: str = ""  # the name of such a one, whose settings these are

    @classmethod
    def of(cls, spec: NetworkSpec) -> "LocalSpec":
        """What each node makes of a network of the swarm that is `node_local`."""
        return cls(
            name=spec.name,
            driver=cast(LocalDriver, spec.driver),
            labels=spec.labels,
            options=spec.options,
            ipv6=spec.ipv6,
            internal=spec.internal,
            attachable=spec.attachable,
            ipam=spec.ipam,
            config_from=spec.config_from,
        )


class LocalNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network of this node, as it was granted. A `config_only` one has neither device nor subnets."""

    id: NetworkID
    spec: LocalSpec
    created: float = 0.0  # unix seconds
    subnets: tuple[Subnet, ...] = ()
    device: str = ""  # the bridge, or the macvlan's parent
    own_parent: bool = False  # that parent is a dummy of ours
    mode: MacvlanMode = "bridge"
    mtu: int = 0  # 0: as the machine's
    icc: bool = True  # containers reach each other
    masquerade: bool = True  # they go out as the node
    binding: IPv4Address | None = None  # where ports without an address are published; None: everywhere
    lent: bool = False  # the swarm's, made here while somebody on this node is on it

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def ingress(self) -> bool:
        """As networks of the swarm have it."""
        return False

    @property
    def internal(self) -> bool:
        return self.spec.internal

    @property
    def is_bridge(self) -> bool:
        return self.spec.driver == "bridge" and not self.spec.config_only

    @property
    def is_default(self) -> bool:
        """The one of containers that name none; it has no names."""
        return self.spec.name == DEFAULT_BRIDGE

    def subnet(self, version: int) -> Subnet | None:
        return next((subnet for subnet in self.subnets if subnet.prefix.version == version), None)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        return tuple(subnet.prefix for subnet in self.subnets)


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port of a plain container that is reached at its node. `port` 0 asks for any, `last` for any from `port` up to
    that; no `address` means all.
    """

    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    target: int
    port: int = 0
    last: int = 0
    address: Address | None = None


class Local(msgspec.Struct, frozen=True, kw_only=True):
    """What only the node of a plain container knows of it."""

    ports: tuple[PublishedPort, ...] = ()  # with real numbers
    links: dict[str, TaskID] = {}  # other names, for other containers on its networks
