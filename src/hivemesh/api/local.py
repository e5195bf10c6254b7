"""What the API needs of the daemon it runs in: `daemon.py` implements it, tests have a small one of their own."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from hivemesh.clock import Clock
from hivemesh.engine.api import EngineInfo
from hivemesh.model.generic import GenericResource
from hivemesh.model.ids import NodeID
from hivemesh.registry.client import Registries
from hivemesh.wire.doctor import Asked, Diagnosis
from hivemesh.wire.engine import SwarmInit, SwarmJoin
from hivemesh.wire.feed import Entry, What
from hivemesh.wire.insight import Insight, Insights
from hivemesh.wire.topology import Picture
from hivemesh.wire.trace import Question, Trace

if TYPE_CHECKING:
    from hivemesh.agent.attached import AttachedContainers
    from hivemesh.agent.local import LocalNetworks
    from hivemesh.control.manager import Manager  # a worker never loads the managers' part

LocalState = Literal["inactive", "pending", "active", "error", "locked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteManager:
    """A manager this node knows of; `addr` is host:port, `node_id` empty when the node never learned it."""

    addr: str
    node_id: NodeID | None = None


class LocalNode(Protocol):
    """This machine's place in a swarm, and the engine beside it."""

    @property
    def name(self) -> str:
        """The machine's host name."""
        ...

    @property
    def state(self) -> LocalState:
        """`pending` while joining or while the managers have not accepted us, `error` when the swarm threw us out,
        `locked` while a manager waits for its unlock key.
        """
        ...

    @property
    def error(self) -> str:
        """Why `state` is `error`, or what is wrong though it is not; else empty."""
        ...

    @property
    def node_id(self) -> NodeID | None: ...

    @property
    def node_addr(self) -> str:
        """The advertised address without port; empty outside a swarm."""
        ...

    @property
    def remote_managers(self) -> tuple[RemoteManager, ...]: ...

    @property
    def manager(self) -> "Manager | None":
        """The managers' facade when this node is one (and ready to answer), else None."""
        ...

    @property
    def is_manager(self) -> bool:
        """The node has the role, though `manager` may still be starting."""
        ...

    @property
    def attached(self) -> "AttachedContainers | None":
        """The plain containers of this node on networks of ours; None while they cannot be looked after."""
        ...

    @property
    def local_networks(self) -> "LocalNetworks":
        """The networks of this node alone."""
        ...

    @property
    def registries(self) -> Registries:
        """Who is asked about images."""
        ...

    @property
    def data_dir(self) -> Path: ...

    @property
    def generic(self) -> tuple[GenericResource, ...]:
        """What tasks may take of this node."""
        ...

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the engine, from the daemon's command line."""
        ...

    @property
    def socket_balancing(self) -> str:
        """Whether sockets are led to backends in front of nftables: "on", or "off: " and why."""
        ...

    @property
    def clock(self) -> Clock: ...

    async def init(self, request: SwarmInit) -> NodeID:
        """Make a swarm of one. Returns when the API of a manager works. Raises `Unavailable` when already in one."""
        ...

    async def restore(self, snapshot: bytes, request: SwarmInit) -> NodeID:
        """The swarm of a snapshot, with this node as its only manager; of `request` only addresses count. Raises as
        `init` does, and `Invalid` when it is no snapshot.
        """
        ...

    async def join(self, request: SwarmJoin) -> None:
        """Returns when the manager has accepted this node and its session stands. Same errors as `init`."""
        ...

    async def leave(self, *, force: bool) -> None:
        """Stop all tasks, remove our kernel objects, forget the swarm. A manager leaves only with `force`."""
        ...

    async def unlock(self, key: str) -> None:
        """Returns when the API of a manager works. Raises `Invalid` for a wrong key, `Conflict` when not locked."""
        ...

    async def engine_socket(self) -> Path | None:
        """The socket of the engine's Docker-compatible API, started if need be; None when the engine has none.

        Raises `Unavailable` in words that say what to do when it cannot be started.
        """
        ...

    async def engine_info(self) -> EngineInfo:
        """Raises `EngineError` or `Unavailable`."""
        ...

    async def networks(self) -> Insights:
        """All networks of the swarm, without their members, as far as this node can find out."""
        ...

    async def network(self, ref: str) -> Insight:
        """One network with everybody on it, by id, name or beginning of the id. Raises `NotFound`, or `Unavailable`
        when this node does not know it and no manager answers.
        """
        ...

    async def trace(self, question: Question) -> Trace:
        """The way of a packet. Raises `Invalid` or `NotFound` when the question leads nowhere, `Unavailable` outside a
        swarm or before this node knows its networks.
        """
        ...

    def feed(self, what: What, node: str) -> AsyncGenerator[Entry, None]:
        """Traffic as it happens, without an end: on a manager of all nodes, or of one by name or id. Raises `NotFound`
        for a node that is none, `Unavailable` outside a swarm, or on a worker that is asked for another node.
        """
        ...

    async def topology(self, *, detailed: bool | None) -> Picture:
        """The swarm as it is wanted and as all kernels have it, laid out; with every sandbox's links, without, or
        (None) as many as fit. Raises `Unavailable` on a node that is no manager.
        """
        ...

    async def doctor(self, asked: Asked) -> Diagnosis:
        """How this machine is and, in a swarm, all nodes and the ways between them. Takes some seconds; what is broken
        is found, and raises nothing.
        """
        ...

    async def drift(self) -> list[str]:
        """What the kernel has too much or lacks against the plan, readable; [] means equal."""
        ...
