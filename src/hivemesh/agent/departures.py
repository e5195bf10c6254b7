"""Which connections to forget when backends leave: kept between views, computed without I/O.

A backend leaves twice. First it gets no new connections (it drains): UDP clients, who know no connections, move on at
once. Then its endpoint is gone from the network: whoever still talks to it must not wait for an answer.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hivemesh.cnm.node import Sandbox, ViewParts
from hivemesh.dataplane.plan.names import INGRESS_SANDBOX, sandbox_namespace
from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID

Addresses = frozenset[Address]
_NONE: Addresses = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Departed:
    """What nobody in `namespace` should go on talking to: by UDP, and at all."""

    namespace: str
    udp: Addresses
    every: Addresses


class Departures:
    """Compares each view with the one before; after a start, nothing has left yet."""

    def __init__(self) -> None:
        self._backends: dict[NetworkID, Addresses] = {}
        self._endpoints: dict[NetworkID, Addresses] = {}

    def since_last(self, view: ViewParts, sandboxes: Collection[Sandbox]) -> list[Departed]:
        """What left since the last call, for each namespace whose connections may lead there."""
        ingress = next((network.id for network in view.networks.values() if network.ingress), None)
        backends = {
            network: frozenset(a for item in items for backend in item.backends for a in backend.addresses)
            for network, items in view.services.items()
        }
        if ingress is not None:
            backends[ingress] = frozenset(
                a
                for item in view.publishes
                if item.protocol == "udp"
                for backend in item.backends
                for a in backend.addresses
            )
        endpoints = _endpoints(view, sandboxes)
        drained, self._backends = _gone(self._backends, backends), backends
        ended, self._endpoints = _gone(self._endpoints, endpoints), endpoints
        found = []
        for namespace, networks in _callers(ingress, sandboxes):
            udp = _NONE.union(*(drained.get(network, _NONE) for network in networks))
            every = _NONE.union(*(ended.get(network, _NONE) for network in networks))
            if udp or every:
                found.append(Departed(namespace=namespace, udp=udp, every=every))
        return found


def _gone(before: dict[NetworkID, Addresses], now: dict[NetworkID, Addresses]) -> dict[NetworkID, Addresses]:
    return {network: gone for network, had in before.items() if (gone := had - now.get(network, _NONE))}


def _endpoints(view: ViewParts, sandboxes: Iterable[Sandbox]) -> dict[NetworkID, Addresses]:
    found: dict[NetworkID, set[Address]] = {}
    for network, peers in view.peers.items():
        found.setdefault(network, set()).update(i.ip for peer in peers for i in peer.addresses)
    for sandbox in sandboxes:
        for attachment in sandbox.task.attachments:
            found.setdefault(attachment.network_id, set()).update(i.ip for i in attachment.addresses)
    return {network: frozenset(addresses) for network, addresses in found.items()}


def _callers(ingress: NetworkID | None, sandboxes: Iterable[Sandbox]) -> Iterable[tuple[str, Collection[NetworkID]]]:
    """Who balances connections into which networks."""
    if ingress is not None:
        yield INGRESS_SANDBOX, (ingress,)
    for sandbox in sandboxes:
        yield sandbox_namespace(sandbox.task.id), [n.id for n in sandbox.networks.values() if not n.ingress]
