"""What a balancer is: from a description of what is balanced to what a namespace must hold for it. Pure.

The same description serves both places where connections are spread: published ports in `ingress_sbox`, and virtual
addresses in each caller's own sandbox (so that the backend sees the caller's own address). Every engine passes
`tests/contract/test_balancer_contract.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hivemesh.kernel.api import SocketVip, VirtualService
from hivemesh.model.addr import Address
from hivemesh.model.ids import ServiceID
from hivemesh.model.service import Scheduler
from hivemesh.wire.control import Backend, PublishItem, ServiceItem
from hivemesh.wire.nft import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A backend in one family. `weight` is its share of new connections among all; 0: none, old ones go on."""

    address: Address
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balanced:
    """Connections to one entry, spread over `targets`: each address once, in ascending order, IPv4 first.

    Compared by identity: whoever describes the same thing twice gets the work done twice (see `plan/vip.py`).
    """

    service: ServiceID
    """What affinity depends on besides the client's address: all entries of a service lead a client to one backend."""
    name: str
    """Of the service, for listings."""
    scheduler: Scheduler
    targets: tuple[Target, ...]

    def of_family(self, version: int) -> tuple[Target, ...]:
        """The targets of one family that take new connections."""
        return tuple(t for t in self.targets if t.weight > 0 and t.address.version == version)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Published(Balanced):
    """A port that every node answers, in both families: the number by which the mesh knows it (`PublishItem.inside`).
    It is kept: the task's sandbox translates it."""

    protocol: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Virtual(Balanced):
    """A virtual address: all ports and protocols. All targets are of its family."""

    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a balancer adds to the plan of a namespace."""

    tables: tuple[Table, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ipvs: tuple[VirtualService, ...] = ()
    sockets: tuple[SocketVip, ...] = ()


class Balancer(Protocol):
    """An entry without targets that take new connections is refused at once: TCP by a reset, others as unreachable."""

    def mesh(self, ports: Sequence[Published], *, outside: str, overlay: str) -> Part:
        """For `ingress_sbox`: connections come in through the interface `outside` and leave through `overlay`, with
        their client's address. All nodes agree on the target of a client where the scheduler depends on it."""
        ...

    def vips(self, vips: Sequence[Virtual]) -> Part:
        """For a sandbox whose own connections to virtual addresses are spread. Also its own address may be a target."""
        ...


def published(item: PublishItem) -> Published:
    """A published port as its item of the view describes it."""
    return Published(
        service=item.service,
        name=item.service_name,
        scheduler=item.balance.scheduler,
        targets=targets(item.backends),
        protocol=item.protocol,
        port=item.inside,
    )


def virtual(item: ServiceItem) -> tuple[Virtual, ...]:
    """The virtual addresses of a service on a network: at most one per family; none if it has no such address."""
    found = targets(item.backends)
    return tuple(
        Virtual(
            service=item.service,
            name=item.name,
            scheduler=item.balance.scheduler,
            targets=tuple(t for t in found if t.address.version == address.version),
            address=address,
        )
        for address in item.vips
    )


def targets(backends: Iterable[Backend]) -> tuple[Target, ...]:
    """In an order that does not depend on that of the view. While an address moves from one task to another, two may
    claim it: it counts once."""
    weights: dict[Address, int] = {}
    for backend in backends:
        for address in backend.addresses:
            weights[address] = max(weights.get(address, 0), backend.weight)
    return tuple(Target(address=a, weight=weights[a]) for a in sorted(weights, key=lambda a: (a.version, int(a))))
