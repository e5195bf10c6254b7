"""Nodes: a machine in the cluster, what its user wants of it, what it says of itself, what the manager sees."""

from typing import Literal

import msgspec

from hivemesh.model.addr import Address, Prefix
from hivemesh.model.generic import GenericResource
from hivemesh.model.ids import NodeID
from hivemesh.model.service import Spec
from hivemesh.model.task import Attachment

Role = Literal["worker", "manager"]
Availability = Literal["active", "pause", "drain"]
NodeState = Literal["unknown", "down", "ready", "disconnected"]

PATIENCE = 24 * 3600.0
"""Seconds that a node may be down before its tasks are given up, and with them their addresses (Docker's number)."""
PARTING = 30.0
"""Seconds that a node has to end its tasks when it leaves."""


class NodeSpec(Spec, frozen=True, kw_only=True, omit_defaults=False):
    name: str = ""
    labels: dict[str, str] = {}
    role: Role = "worker"
    availability: Availability = "active"


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a node trusts: digests of its roots, as in join tokens, and the key that signed its own certificate."""

    roots: tuple[str, ...] = ()
    issuer: str = ""  # identifier of the key, in hexadecimal digits


class NodeDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent reports about its machine when it connects."""

    hostname: str = ""
    architecture: str = ""  # as uname says: x86_64, aarch64
    os: str = "linux"
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: tuple[GenericResource, ...] = ()
    engine: str = ""  # "podman 4.3.1"
    engine_version: str = ""
    labels: dict[str, str] = {}
    mtu: int = 1500  # of the underlay interface that carries the VTEP address
    balancers: tuple[str, ...] = ("nftables",)  # what the kernel can balance services with
    protocols: tuple[str, ...] = ("tcp", "udp")  # of published ports that its kernel can serve
    trust: Trust = Trust()
    published: tuple[tuple[str, int], ...] = ()  # protocols and ports that plain containers have there
    gateway: tuple[Prefix, ...] = ()  # of the bridge that leads sandboxes out of the node: overlays keep clear of it


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """`spec` is the user's, `description` and `vtep` the agent's, `state` and `attachments` the manager's."""

    id: NodeID
    spec: NodeSpec
    version: int = 0
    stale_version: int = 0  # who has read this version, or one before it, does not know `spec`
    created: float = 0.0
    updated: float = 0.0
    description: NodeDescription = NodeDescription()
    vtep: Address | None = None  # data path address: the end of the node's tunnels
    addr: str = ""  # as the managers see the node, without port
    state: NodeState = "unknown"
    message: str = ""
    lost_at: float = 0.0  # while it is down: when its tasks are given up, unix seconds
    manager_addr: str = ""  # host:2377 on managers
    attachments: tuple[Attachment, ...] = ()  # the node's own address on each overlay it takes part in

    def gone_down(self, message: str, now: float, patience: float = PATIENCE) -> "Node":
        """Down as of now, for the reason `message`; one that was down already gets no more time."""
        until = now + patience
        if self.state == "down" and self.lost_at:
            until = min(until, self.lost_at)
        return msgspec.structs.replace(self, state="down", message=message, lost_at=until)

    def with_spec(self, spec: NodeSpec) -> "Node":
        return msgspec.structs.replace(self, spec=spec, stale_version=self.version)

    @property
    def acting_role(self) -> Role:
        """What the node should act as: one that was demoted stays a manager until its part of the store is removed."""
        return "manager" if self.manager_addr else self.spec.role
