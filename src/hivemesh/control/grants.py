"""Addresses granted within one transaction. What objects hold is the truth; leases are rebuilt from it when needed."""

from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address

import msgspec

from hivemesh.control import addresses as owners
from hivemesh.ipam.leases import Leases
from hivemesh.model.addr import Address, Interface, endpoint_mac
from hivemesh.model.cursor import Cursor
from hivemesh.model.errors import Conflict, Exhausted, Invalid
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID
from hivemesh.model.network import Network
from hivemesh.model.service import Service
from hivemesh.model.task import Attachment
from hivemesh.store.tables import Transaction, View

NewId = Callable[[], str]


class Grants:
    """The leases of each network, built when first needed. Lives no longer than its transaction."""

    def __init__(self, view: View, new_id: NewId) -> None:
        self._view = view
        self._new_id = new_id
        self._leases: dict[NetworkID, tuple[Leases, ...]] = {}
        self._kept: dict[NetworkID, Mapping[Address, Service]] = {}

    def addresses(
        self, network: Network, wanted: Collection[Address] = (), owner: ServiceID | None = None
    ) -> tuple[Interface, ...]:
        """One free address per family: the one of `wanted`, else any. Those kept for a service only its tasks are
        given: `owner` is the service in question.

        None on a network that each node makes itself: there the node gives them.

        Raises `Exhausted` naming the network, `Invalid` or `Conflict` for a wanted address that cannot be had.
        """
        if network.spec.node_local:
            if wanted:
                raise Invalid(
                    f"network {network.spec.name}: address {next(iter(wanted))} cannot be asked for: on a network of "
                    f"driver {network.spec.driver} each node gives addresses of its own"
                )
            return ()
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
                lease.undo(interface)
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

    def undo(self, attachment: Attachment) -> None:
        """As if it had not been granted in this pass."""
        for lease in self._leases.get(attachment.network_id, ()):
            for address in filter(lease.contains, attachment.addresses):
                lease.undo(address)

    def remember(self, tx: Transaction) -> None:
        """Where to go on next time; `tx` is the view this was made of."""
        for network, leases in self._leases.items():
            before = tx.get(Cursor, network) or Cursor(id=network)
            last = tuple(_address(lease.subnet.prefix.version, lease.last) for lease in leases)
            tx.put(msgspec.structs.replace(before, addresses=last))

    def _of(self, network: Network) -> tuple[Leases, ...]:
        if network.id in self._leases:
            return self._leases[network.id]
        kept = self._kept[network.id] = owners.kept(self._view, network.id)
        cursor = self._view.get(Cursor, network.id)
        given = {address.version: int(address) for address in cursor.addresses} if cursor is not None else {}
        holders = list(owners.held(self._view, network.id))
        made = []
        for subnet in network.subnets:
            lease = Leases(subnet, given.get(subnet.prefix.version, 0))
            for _, addresses in holders:
                for address in addresses:
                    lease.hold(address)
            for wanted in kept:
                lease.reserve(wanted)
            made.append(lease)
        self._leases[network.id] = tuple(made)
        return self._leases[network.id]


def _address(version: int, number: int) -> Address:
    return IPv4Address(number) if version == 4 else IPv6Address(number)
