"""Which connections to forget when backends leave: kept between views, computed without I/O.

A backend leaves twice. First it gets no new connections (it drains): UDP clients, who know no connections, move on at
once. Then its endpoint is gone from the network: whoever still talks to it must not wait for an answer.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hivemesh.cnm.node import Sandbox, ViewParts
from hivemesh.dataplane.plan.names import INGRESS_SANDBOX, sandbox_namespace
from hivemesh.model.addr import Address, Prefix
from hivemesh.model.ids import NetworkID

Addresses = frozenset[Address]
_NONE: Addresses = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Departed:
    """What nobody in `namespace` should go on talking to: by UDP, and at all."""

    namespace: str
    udp: Addresses
    every: Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Strangers:
    """What is left in `namespace` from before we looked: connections that lead `within` our networks, and to nobody we
    know; by UDP, to nobody who serves."""

    namespace: str
    within: tuple[Prefix, ...]
    known: Addresses
    backends: Addresses


class Departures:
    """Compares each view with the one before. What left while nobody looked shows in `strangers`."""

    def __init__(self) -> None:
        self._backends: dict[NetworkID, Addresses] = {}
        self._endpoints: dict[NetworkID, Addresses] = {}
        self._looked_at: frozenset[str] = frozenset()

    def since_last(self, view: ViewParts, sandboxes: Collection[Sandbox]) -> list[Departed]:
        """What left since the last call, for each namespace whose connections may lead there."""
        ingress = _ingress(view)
        backends = _backends(view, ingress)
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

    def strangers(self, view: ViewParts, sandboxes: Collection[Sandbox]) -> list[Strangers]:
        """For each namespace that was not there at the last call. `view` is a manager's, no memory of one."""
        ingress = _ingress(view)
        callers = dict(_callers(ingress, sandboxes))
        fresh, self._looked_at = callers.keys() - self._looked_at, frozenset(callers)
        if not fresh:
            return []
        backends, endpoints = _backends(view, ingress), _endpoints(view, sandboxes)
        found = []
        for namespace in sorted(fresh):
            networks = [view.networks[network] for network in callers[namespace] if network in view.networks]
            known = {a for network in networks for a in endpoints.get(network.id, ())}
            # Tasks of this node, their sandboxes perhaps yet to be asked for, and plain containers anywhere
            known |= {
                interface.ip
                for item in view.tasks.values()
                if not item.task.status.state.dead
                for attachment in item.task.attachments
                for interface in attachment.addresses
            }
            known |= {a for network in networks for item in view.endpoints.get(network.id, ()) for a in item.addresses}
            # Sockets that nftables leads to a backend believe that they speak with the virtual address
            known |= {a for network in networks for item in view.services.get(network.id, ()) for a in item.vips}
            known |= {subnet.gateway for network in networks for subnet in network.subnets}
            found.append(
                Strangers(
                    namespace=namespace,
                    within=tuple(subnet.prefix for network in networks for subnet in network.subnets),
                    known=frozenset(known),
                    backends=_NONE.union(*(backends.get(network.id, _NONE) for network in networks)),
                )
            )
        return found


def _ingress(view: ViewParts) -> NetworkID | None:
    return next((network.id for network in view.networks.values() if network.ingress), None)


def _backends(view: ViewParts, ingress: NetworkID | None) -> dict[NetworkID, Addresses]:
    """Who serves; of published ports only by UDP."""
    found = {
        network: frozenset(a for item in items for backend in item.backends for a in backend.addresses)
        for network, items in view.services.items()
    }
    if ingress is not None:
        found[ingress] = frozenset(
            a
            for item in view.publishes
            if item.protocol == "udp"
            for backend in item.backends
            for a in backend.addresses
        )
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
