"""Networks: what was asked (`NetworkSpec`) and what allocation granted (VNI, subnets)."""

import msgspec

from hivemesh.model.addr import VNI, Address, Prefix
from hivemesh.model.ids import NetworkID

INGRESS = "ingress"
"""The name Docker gives the network that carries published-port traffic."""

OVERLAY = "overlay"
"""The driver of networks that span nodes."""

VXLAN_OVERHEAD = 50
"""Outer Ethernet, IPv4, UDP and VXLAN headers (RFC 7348); 70 over an IPv6 underlay."""

MTU_OPTION = "com.docker.network.driver.mtu"
VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"


class IPAMConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """One subnet as asked for, in the API's words; empty means: choose. Nobody gets an auxiliary address."""

    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = {}


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants of a network; immutable once created."""

    name: str
    driver: str = OVERLAY
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    ipam: tuple[IPAMConfig, ...] = ()
    config_from: str = ""  # the network of each node that has the settings

    @property
    def node_local(self) -> bool:
        """Each node makes its own when a task there needs it, and nothing leads from one to another."""
        return self.driver != OVERLAY


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    """A prefix cut from a pool or given by the user; the gateway is on br0 of every node."""

    prefix: Prefix
    gateway: Address
    ip_range: Prefix | None = None
    reserved: tuple[Address, ...] = ()  # nobody may have these, and none is the gateway


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A swarm-scoped network. `vni` and `subnets` are the allocator's; everything else the user's. One that is
    `node_local` has neither.
    """

    id: NetworkID
    spec: NetworkSpec
    version: int = 0
    created: float = 0.0  # unix seconds
    updated: float = 0.0
    vni: VNI | None = None
    subnets: tuple[Subnet, ...] = ()
    error: str = ""  # why allocation failed, if it did
