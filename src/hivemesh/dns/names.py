"""Pure: the services and attached containers of one network, as the table of its names."""

from collections.abc import Iterable

from hivemesh.model.addr import Address
from hivemesh.model.local import LocalNetwork
from hivemesh.wire.control import EndpointItem, NetworkItem, ServiceItem
from hivemesh.wire.resolver import Names


def names_of(
    network: NetworkItem | LocalNetwork, services: Iterable[ServiceItem], endpoints: Iterable[EndpointItem]
) -> Names:
    """What `network` answers; items of other networks are left out, and an ingress network has no names (Docker).

    A service's name and aliases lead to its VIPs, or when it has none to all backends that take new connections (weight
    above 0); `tasks.<name>` always to all backends. A service without backends has no names: they go with the last one,
    as Docker's do. Names that several services or containers share have the addresses of all of them. Equal items give
    an equal table, in whatever order they come.
    """
    found: dict[str, tuple[Address, ...]] = {}
    shared: dict[str, dict[Address, None]] = {}  # of names that several have: ordered sets
    reverse: dict[Address, str] = {}

    def add(name: str, addresses: tuple[Address, ...]) -> None:
        name = _folded(name)
        if name not in found:
            found[name] = addresses
        else:  # most names have one owner, and are not worth a set
            shared.setdefault(name, dict.fromkeys(found[name])).update(dict.fromkeys(addresses))

    def add_member(names: tuple[str, ...], addresses: tuple[Address, ...]) -> None:
        for name in names:
            add(name, addresses)
        if names and (primary := names[0].rstrip(".")):
            for address in addresses:
                reverse[address] = primary

    if not network.ingress:
        for service in sorted((s for s in services if s.network == network.id), key=lambda s: s.service):
            backends = _distinct(a for backend in service.backends for a in backend.addresses)
            if not backends:
                continue
            open_ones = _distinct(a for backend in service.backends if backend.weight for a in backend.addresses)
            for name in dict.fromkeys((service.name, *service.aliases)):
                add(name, service.vips or open_ones)
                add(f"tasks.{name}", backends)
            for backend in service.backends:
                add_member(backend.names, backend.addresses)
        for endpoint in sorted((e for e in endpoints if e.network == network.id), key=lambda e: e.endpoint):
            add_member(endpoint.names, endpoint.addresses)
    found.update({name: tuple(addresses) for name, addresses in shared.items()})
    found.pop("", None)
    return Names(network=network.id, name=_folded(network.name), addresses=found, reverse=reverse)


def _distinct(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(dict.fromkeys(addresses))


def _folded(name: str) -> str:
    """Lower case as DNS compares, without a final dot."""
    return name.rstrip(".").lower()
