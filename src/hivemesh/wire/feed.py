"""What nodes tell while somebody looks: each new connection, what was counted, or what their kernels hold, again and
again.

The manager asks over the session (`FeedWanted`); the answer comes over a connection of its own: `POST /v1/feed/<id>`.
"""

from typing import Literal

import msgspec

from hivemesh.model.ids import NodeID
from hivemesh.wire.framing import Unframer
from hivemesh.wire.topology import Meter, Sight

What = Literal["flows", "counts", "picture"]
Place = Literal["ingress", "host", "sandbox"]
Verdict = Literal["balanced", "direct", "refused"]
MOST_BYTES = 16 << 20
"""Of one entry: counts of many thousand backends."""
COUNTS_PERIOD = 1.0
"""Seconds between two looks at what was counted, while somebody wants to know."""


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One end of a connection. `service` and `name` (`web.1`) are empty for who is nobody's task."""

    address: str
    port: int = 0
    service: str = ""
    task: str = ""
    name: str = ""


class Flow(msgspec.Struct, frozen=True, kw_only=True, tag="flow"):
    """A new connection, as seen where it begins: at a published port (`ingress`; in host mode `host`), or in a task's
    sandbox.

    `balanced`: the target is virtual, and `backend` answers. `direct`: the target itself does, or the one task that its
    port in host mode leads to. `refused`: a published port without a backend.
    """

    at: float  # unix seconds, to a quarter of one
    node: str
    place: Place
    protocol: str
    source: End
    target: End
    verdict: Verdict
    backend: End | None = None


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag="lost"):
    """So many entries were dropped because nobody could keep up."""

    node: str
    count: int


class Unheard(msgspec.Struct, frozen=True, kw_only=True, tag="unheard"):
    """A node that tells nothing, and why."""

    node: str
    reason: str


class BackendCount(msgspec.Struct, frozen=True, kw_only=True):
    """Through one published port of a node, to one backend. `toward` and `back` are bytes."""

    service: str
    protocol: str
    port: int
    backend: str
    connections: int = 0
    toward: int = 0
    back: int = 0
    name: str = ""  # of the task, where it is known


class PortRefusals(msgspec.Struct, frozen=True, kw_only=True):
    """Connections to a published port while no backend served."""

    service: str
    protocol: str
    port: int
    refused: int


class VipCount(msgspec.Struct, frozen=True, kw_only=True):
    """Connections that tasks of a node began to a virtual address."""

    service: str
    network: str
    connections: int = 0
    refused: int = 0


class ServiceCount(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a service's tasks on a node received and sent on a network, and packets dropped on the way."""

    service: str
    network: str
    received: int = 0
    sent: int = 0
    dropped: int = 0


class Counts(msgspec.Struct, frozen=True, kw_only=True, tag="counts"):
    """All of a node, whose id its manager knows; nothing ever counts down while its daemon runs."""

    at: float  # unix seconds
    node: str
    node_id: NodeID | None = None
    backends: tuple[BackendCount, ...] = ()
    refusals: tuple[PortRefusals, ...] = ()
    vips: tuple[VipCount, ...] = ()
    services: tuple[ServiceCount, ...] = ()


Entry = Flow | Lost | Unheard | Counts | Sight | Meter


def unframer() -> Unframer[Entry]:
    return Unframer(Entry, MOST_BYTES)
