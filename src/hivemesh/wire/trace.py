"""The way of a packet, hop by hop: what is asked of a node, and what it saw.

A trace is made of legs. Each is examined by the node whose kernel it concerns: the one where a packet begins, and the
one where it ends, which for the way back begins it.
"""

from typing import Literal

import msgspec

from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID

Protocol = Literal["tcp", "udp", "icmp"]


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /hivemesh/trace`. `source` is a task or container of the asked node, by name, id or beginning of the id;
    empty: somebody outside who uses a published port of this node. `target` is a service or task by its name, or an
    address, each with `:port` or without; from outside, `:port` or the node's `address:port`."""

    source: str = ""
    target: str
    protocol: Protocol = "tcp"


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a way that lies on one node, on one network.

    `arrive`: from the tunnel to whoever has `destination`, and back towards `source`, whose node has the VTEP `peer`.
    `port` is the one the packet carries on the network (0: none); `mesh` says that it came by a published port.
    """

    network: NetworkID
    source: Address
    destination: Address
    peer: Address
    protocol: Protocol = "tcp"
    port: int = 0
    mesh: bool = False


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One object on the way: as planned and as the kernel has it. `proof` is the command that shows it."""

    what: str
    plan: str
    kernel: str
    agrees: bool
    proof: str
    cause: str = ""  # of the disagreement, most likely


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """A place the packet comes through; `namespace` is empty for the machine's own."""

    node: str
    namespace: str
    title: str
    facts: tuple[Fact, ...]

    @property
    def finding(self) -> Fact | None:
        return next((fact for fact in self.facts if not fact.agrees), None)


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """To one backend and back."""

    backend: Address
    hops: tuple[Hop, ...]
    unseen: str = ""  # why the other node's hops are missing


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """`begin` are the hops all ways share: the name, the virtual address or the published port."""

    source: str
    target: str
    protocol: Protocol
    begin: tuple[Hop, ...] = ()
    ways: tuple[Way, ...] = ()


class ExamineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/examine`: another node's part of a way, asked of any manager; answered by `Examined`."""

    vtep: Address
    leg: Leg


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    hops: tuple[Hop, ...]


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/examined`: what the calling node found when a manager asked it by `id`."""

    id: str
    examined: Examined
