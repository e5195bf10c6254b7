"""Who serves what, as nodes are told: ports, services and attached containers with their backends and names. Pure.

Part of the derivation of views (see `views.py`), with its habit: what did not change is the very same object as in
the revision before.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from hivemesh.control import ports
from hivemesh.control.balance import balance_of, weight_of
from hivemesh.model import template
from hivemesh.model.addr import Address, address_of
from hivemesh.model.errors import Invalid
from hivemesh.model.ids import NetworkID, NodeID, ServiceID, TaskID, short
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import Balance, PortConfig, Service, number_inside
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import AnyItem, Backend, EndpointItem, PublishItem, ServiceItem, key_of

K = TypeVar("K")
V = TypeVar("V")
Group = Mapping[str, AnyItem]


@dataclass(frozen=True, slots=True)
class Site:
    """What a task's node adds to what is told of the task."""

    weight: int = 1
    hostname: str = ""


Sites = Mapping[NodeID, Site]
NOWHERE = Site()


@dataclass(frozen=True, slots=True)
class _Restricted:
    """A port that is not open everywhere: `wide` is told to nodes that its opening accepts, `narrow` to all others."""

    opening: ports.Opening
    wide: PublishItem
    narrow: PublishItem | None


@dataclass(frozen=True, slots=True)
class _Served:
    """What follows from one service, its serving tasks and their nodes."""

    service: Service
    serving: Sequence[Task]
    sites: Sequence[Site]
    publishes: Group  # what is open everywhere
    restricted: tuple[_Restricted, ...]
    names: Mapping[NetworkID, ServiceItem]


class Serving:
    """Keeps the items of the last `update`."""

    def __init__(self) -> None:
        self.services: Mapping[NetworkID, Group] = {}
        self.endpoints: Mapping[NetworkID, Group] = {}
        self._publishes: Group = {}
        self._restricted: tuple[_Restricted, ...] = ()
        self._by_acceptance: dict[tuple[bool, ...], Group] = {}
        self._networks: Mapping[NetworkID, Network] = {}
        self._served: dict[ServiceID, _Served] = {}
        self._attached: dict[TaskID, tuple[Task, Mapping[NetworkID, EndpointItem]]] = {}

    def update(
        self,
        networks: Mapping[NetworkID, Network],
        services: Iterable[Service],
        serving: Mapping[ServiceID, Collection[Task]],
        attached: Iterable[Task],
        sites: Sites,
    ) -> None:
        """Take over allocated networks, all services with their serving tasks, and serving attached containers."""
        if not same(networks, self._networks):
            self._networks, self._served, self._attached = networks, {}, {}
        self._update_services(services, serving, sites)
        self._update_endpoints(attached, sites)

    def publishes_at(self, node: Node) -> Group:
        """The ports that `node` answers: one and the same for all nodes that meet the same constraints."""
        if not self._restricted:
            return self._publishes
        accepted = tuple(port.opening.accepts(node) for port in self._restricted)
        known = self._by_acceptance.get(accepted)
        if known is None:
            here = dict(self._publishes)
            for port, accepts in zip(self._restricted, accepted, strict=True):
                if (item := port.wide if accepts else port.narrow) is not None:
                    here[key_of(item)] = item
            known = self._by_acceptance[accepted] = here
        return known

    def _update_services(
        self, services: Iterable[Service], serving: Mapping[ServiceID, Collection[Task]], sites: Sites
    ) -> None:
        served: dict[ServiceID, _Served] = {}
        publishes: dict[str, AnyItem] = {}
        restricted: list[_Restricted] = []
        by_network: dict[NetworkID, dict[str, AnyItem]] = {}
        for service in services:
            tasks = tuple(sorted(serving.get(service.id, ()), key=lambda task: (task.slot, task.id)))
            where = tuple(_site(sites, task) for task in tasks)
            known = self._served.get(service.id)
            if known is None or known.service is not service or (known.serving, known.sites) != (tasks, where):
                known = self._serve(service, tasks, where, known)
            served[service.id] = known
            publishes.update(known.publishes)
            restricted += known.restricted
            for network, item in known.names.items():
                by_network.setdefault(network, {})[key_of(item)] = item
        self._served = served
        if publishes != self._publishes or tuple(restricted) != self._restricted:
            self._publishes, self._restricted, self._by_acceptance = publishes, tuple(restricted), {}
        self.services = kept(self.services, by_network)

    def _update_endpoints(self, attached: Iterable[Task], sites: Sites) -> None:
        known: dict[TaskID, tuple[Task, Mapping[NetworkID, EndpointItem]]] = {}
        by_network: dict[NetworkID, dict[str, AnyItem]] = {}
        for task in attached:
            before = self._attached.get(task.id)
            entry = before if before is not None and before[0] is task else (task, self._endpoints_of(task, sites))
            known[task.id] = entry
            for network, item in entry[1].items():
                by_network.setdefault(network, {})[key_of(item)] = item
        self._attached = known
        self.endpoints = kept(self.endpoints, by_network)

    def _serve(self, service: Service, tasks: Sequence[Task], sites: Sequence[Site], before: _Served | None) -> _Served:
        balance = _balance(service)
        names: dict[NetworkID, ServiceItem] = {}
        for item in self._names_of(service, balance, tasks, sites):
            known = before.names.get(item.network) if before is not None else None
            names[item.network] = known if known is not None and known == item else item
        publishes: dict[str, AnyItem] = {}
        restricted: list[_Restricted] = []
        openings = ports.openings_as_stored(service)
        for port in service.ports:
            if port.publish_mode == "ingress" and port.published_port:
                published = self._publish(service, port, balance, tasks, sites)
                if (opening := ports.opening(openings, port)) is None:
                    publishes[key_of(published)] = published
                    continue
                narrow = msgspec.structs.replace(published, addresses=opening.addresses) if opening.addresses else None
                restricted.append(_Restricted(opening, published, narrow))
        return _Served(service, tasks, sites, publishes, tuple(restricted), names)

    def _publish(
        self, service: Service, port: PortConfig, balance: Balance, tasks: Sequence[Task], sites: Sequence[Site]
    ) -> PublishItem:
        inside = number_inside(port, service.doors)
        return PublishItem(
            service=service.id,
            service_name=service.spec.name,
            protocol=port.protocol,
            port=port.published_port,
            backends=tuple(
                Backend(task=task.id, addresses=addresses, weight=site.weight)
                for task, site in zip(tasks, sites, strict=True)
                if (addresses := self._on_ingress(task)) and ports.serves(task, service, port)
            ),
            balance=balance,
            door=inside if inside != port.published_port else 0,
        )

    def _names_of(
        self, service: Service, balance: Balance, tasks: Sequence[Task], sites: Sequence[Site]
    ) -> Iterable[ServiceItem]:
        """The service on each of its networks where it can be had by name."""
        virtual = service.spec.endpoint_spec.mode == "vip"
        vips = {vip.network_id: tuple(address_of(interface) for interface in vip.addresses) for vip in service.vips}
        for config in service.spec.task_template.networks:
            network = NetworkID(config.target)
            if network not in self._networks or (virtual and network not in vips):
                continue  # not granted yet, so nobody serves there either
            yield ServiceItem(
                network=network,
                service=service.id,
                name=service.spec.name,
                aliases=config.aliases,
                vips=vips[network] if virtual else (),
                balance=balance,
                backends=tuple(
                    Backend(
                        task=task.id,
                        addresses=_addresses(attachment),
                        weight=site.weight,
                        names=_task_names(task, site),
                    )
                    for task, site in zip(tasks, sites, strict=True)
                    if (attachment := _attachment(task, network)) is not None
                ),
            )

    def _endpoints_of(self, task: Task, sites: Sites) -> Mapping[NetworkID, EndpointItem]:
        aliases = {NetworkID(config.target): config.aliases for config in task.spec.networks}
        return {
            attachment.network_id: EndpointItem(
                network=attachment.network_id,
                endpoint=attachment.endpoint_id,
                names=_distinct(
                    task.container, *_own_names(task, _site(sites, task)), *aliases.get(attachment.network_id, ())
                ),
                addresses=_addresses(attachment),
            )
            for attachment in task.attachments
            if attachment.network_id in self._networks
        }

    def _on_ingress(self, task: Task) -> tuple[Address, ...]:
        return tuple(
            address
            for attachment in task.attachments
            if (network := self._networks.get(attachment.network_id)) is not None and network.spec.ingress
            for address in _addresses(attachment)
        )


def sites_of(nodes: Iterable[Node]) -> Sites:
    """By node. A label that nobody checked counts as none."""
    sites: dict[NodeID, Site] = {}
    for node in nodes:
        try:
            weight = weight_of(node.spec.labels)
        except Invalid:
            weight = NOWHERE.weight
        sites[node.id] = Site(weight, node.description.hostname)
    return sites


def same(a: Mapping[K, V], b: Mapping[K, V]) -> bool:
    """The very same values under the same keys."""
    return len(a) == len(b) and all(b.get(key) is value for key, value in a.items())


def kept(
    before: Mapping[K, Mapping[str, AnyItem]], after: Mapping[K, Mapping[str, AnyItem]]
) -> Mapping[K, Mapping[str, AnyItem]]:
    """`after`, with the dictionaries of `before` where they hold the very same items."""
    return {key: before[key] if key in before and same(group, before[key]) else group for key, group in after.items()}


def _balance(service: Service) -> Balance:
    try:
        return balance_of(service.spec.labels)
    except Invalid:  # stored before anybody checked
        return Balance()


def _site(sites: Sites, task: Task) -> Site:
    return sites.get(task.node_id, NOWHERE) if task.node_id else NOWHERE


def _task_names(task: Task, site: Site) -> tuple[str, ...]:
    return _distinct(task.name, *_own_names(task, site))


def _own_names(task: Task, site: Site) -> tuple[str, ...]:
    """What the container itself is called, whoever it works for."""
    hostname = task.spec.container_spec.hostname
    try:
        hostname = template.fill(hostname, template.values_of(task, site.hostname)) if hostname else ""
    except Invalid:
        hostname = ""
    return short(task.status.container_id), hostname


def _distinct(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))


def _attachment(task: Task, network: NetworkID) -> Attachment | None:
    return next((attachment for attachment in task.attachments if attachment.network_id == network), None)


def _addresses(attachment: Attachment) -> tuple[Address, ...]:
    return tuple(address_of(interface) for interface in attachment.addresses)
