"""Addresses granted within one transaction. What objects hold is the truth; leases are rebuilt from it when needed."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from hivemesh.control import addresses as owners
from hivemesh.ipam.leases import Leases
from hivemesh.model.addr import Address, Interface, endpoint_mac
from hivemesh.model.errors import Conflict, Exhausted, Invalid
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID
from hivemesh.model.network import Network
from hivemesh.model.service import Service
from hivemesh.model.task import Attachment
from hivemesh.store.tables import View

NewId = Callable[[], str]


@dataclass(slots=True)
class Cursors:
    """What was given out last, so that what was freed is not given again at once.

    Memory of the process, not state: losing it is harmless, and a transaction that is tried again may leave gaps.
    """

    vni: int = 0
    port: int = 0
    addresses: dict[tuple[NetworkID, int], int] = field(default_factory=dict)  # by network and IP version


class Grants:
    """The leases of each network, built when first needed. Lives no longer than its transaction."""

    def __init__(self, view: View, new_id: NewId, cursors: Cursors) -> None:
        self._view = view
        self._new_id = new_id
        self._cursors = cursors
        self._leases: dict[NetworkID, tuple[Leases, ...]] = {}
        self._kept: dict[NetworkID, Mapping[Address, Service]] = {}

    def addresses(
        self, network: Network, wanted: Collection[Address] = (), owner: ServiceID | None = None
    ) -> tuple[Interface, ...]:
        """One free address per family: the one of `wanted`, else any. Those kept for a service only its tasks are
        given: `owner` is the service in question.

        Raises `Exhausted` naming the network, `Invalid` or `Conflict` for a wanted address that cannot be had.
        """
        if network.vni is None:
            raise Exhausted(network.error or f"network {network.spec.name} has no subnet yet")
        granted: list[Interface] = []
        leases = self._of(network)
        for address in wanted:
            if not any(lease.contains(address) for lease in leases):
                subnets = " or ".join(str(lease.subnet.prefix) for lease in leases)
                raise Invalid(
                    f"invalid address {address}: It does not belong to network {network.spec.name} ({subnets})"
                )
            keeper = self._kept[network.id].get(address)
            if keeper is not None and keeper.id != owner:
                raise Conflict(f"network {network.spec.name}: address {address} is kept for service {keeper.spec.name}")
        try:
            for lease in leases:
                chosen = next((address for address in wanted if lease.contains(address)), None)
                granted.append(lease.acquire() if chosen is None else lease.take(chosen))
        except (Exhausted, Conflict) as error:
            for lease, interface in zip(leases, granted, strict=False):
                lease.release(interface)
            raise type(error)(f"network {network.spec.name}: {error}") from None
        return tuple(granted)

    def attachment(
        self, network: Network, wanted: Collection[Address] = (), owner: ServiceID | None = None
    ) -> Attachment:
        """A new endpoint, at the addresses `wanted` if any. Raises as `addresses` does."""
        addresses = self.addresses(network, wanted, owner)
        endpoint = EndpointID(self._new_id())
        return Attachment(
            endpoint_id=endpoint,
            network_id=network.id,
            addresses=addresses,
            mac=endpoint_mac(addresses, endpoint),
        )

    def release(self, network: NetworkID, addresses: Iterable[Interface]) -> None:
        """Give back within this pass."""
        for address in addresses:
            for lease in self._leases.get(network, ()):
                if lease.contains(address):
                    lease.release(address)

    def remember(self) -> None:
        """Where to go on next time."""
        for network, leases in self._leases.items():
            for lease in leases:
                self._cursors.addresses[network, lease.subnet.prefix.version] = lease.last

    def _of(self, network: Network) -> tuple[Leases, ...]:
        if network.id in self._leases:
            return self._leases[network.id]
        holders = list(owners.held(self._view, network.id))
        kept = self._kept[network.id] = owners.kept(self._view, network.id)
        made = []
        for subnet in network.subnets:
            version = subnet.prefix.version
            after = self._cursors.addresses.get((network.id, version))
            if after is None:  # a new process: go on after the youngest endpoint
                youngest = max(holders, key=lambda pair: pair[0].created, default=(None, ()))[1]
                after = next((int(address) for address in youngest if address.version == version), 0)
            lease = Leases(subnet, after)
            for _, addresses in holders:
                for address in addresses:
                    lease.hold(address)
            for wanted in kept:
                lease.reserve(wanted)
            made.append(lease)
        self._leases[network.id] = tuple(made)
        return self._leases[network.id]
