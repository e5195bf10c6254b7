"""What each node must know, derived from the store: pure, and cheap because nodes and revisions share what is equal.

A view is a handful of groups, each a dictionary of items. A group that did not change is the very same dictionary as
in the revision before and for every node, so comparing two views costs little more than what differs between them:
with 50 nodes and 1000 tasks on one network, each of the 50 views has 1000 peers, yet nobody walks 50,000 items.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from hivemesh.control.serving import Group, Serving, same, sites_of
from hivemesh.model.cluster import Cluster
from hivemesh.model.ids import NetworkID, NodeID, PayloadID, ServiceID, TaskID
from hivemesh.model.network import MTU_OPTION, Network
from hivemesh.model.node import Node
from hivemesh.model.secret import Config, Credential, Payload, Secret, payloads_of
from hivemesh.model.service import Service
from hivemesh.model.task import Attachment, Task, TaskState
from hivemesh.store.tables import View as Store
from hivemesh.wire.control import (
    AnyItem,
    ConfigItem,
    CredentialItem,
    LocalNetworkItem,
    NetworkItem,
    NodeItem,
    PayloadItem,
    PeerItem,
    SecretItem,
    TaskItem,
    View,
    key_of,
)

Peers = Mapping[NetworkID, Mapping[NodeID, Group]]
ITEM_OF: dict[type[Payload], type[SecretItem | ConfigItem | CredentialItem]] = {
    Secret: SecretItem,
    Config: ConfigItem,
    Credential: CredentialItem,
}
Used = tuple[type[Payload], PayloadID]
EMPTY: Group = {}


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node's view at one revision; immutable, most of it shared with other nodes' views."""

    node: NodeID
    revision: int
    nodes: Group
    publishes: Group
    networks: Group
    tasks: Group
    payloads: Group  # secrets and configs of tasks there that are not dead
    services: Mapping[NetworkID, Group]  # of the networks it takes part in, and so are the next two
    endpoints: Mapping[NetworkID, Group]
    peers: Peers  # its own endpoints are among them, and skipped

    def items(self) -> Iterable[AnyItem]:
        """Everything, in no particular order."""
        others = (group for by_node in self.peers.values() for node, group in by_node.items() if node != self.node)
        names = chain(self.services.values(), self.endpoints.values())
        groups = chain((self.nodes, self.publishes, self.networks, self.tasks, self.payloads), names, others)
        return chain.from_iterable(group.values() for group in groups)

    def flat(self) -> View:
        """As an agent keeps it."""
        return {key_of(item): item for item in self.items()}


def difference(old: NodeView, new: NodeView) -> tuple[list[AnyItem], list[str]]:
    """The items to set and the keys to remove that turn `old` into `new` (two views of one node)."""
    changed: list[AnyItem] = []
    removed: list[str] = []
    for before, after in (
        (old.nodes, new.nodes),
        (old.publishes, new.publishes),
        (old.networks, new.networks),
        (old.tasks, new.tasks),
        (old.payloads, new.payloads),
    ):
        _compare(before, after, changed, removed)
    for had, has in ((old.services, new.services), (old.endpoints, new.endpoints)):
        for network in had.keys() | has.keys():
            _compare(had.get(network, EMPTY), has.get(network, EMPTY), changed, removed)
    for network in old.peers.keys() | new.peers.keys():
        was, now = old.peers.get(network, {}), new.peers.get(network, {})
        if was is not now:
            for node in was.keys() | now.keys():
                if node != new.node:
                    _compare(was.get(node, EMPTY), now.get(node, EMPTY), changed, removed)
    # An endpoint may have moved from one node to another: then it is not gone.
    present = {key_of(item) for item in changed} if removed else set()
    return changed, [key for key in removed if key not in present]


def _compare(before: Group, after: Group, changed: list[AnyItem], removed: list[str]) -> None:
    if before is after:
        return
    for key, item in after.items():
        known = before.get(key)
        if known is not item and known != item:
            changed.append(item)
    removed.extend(key for key in before if key not in after)


@dataclass(frozen=True, slots=True)
class _Part:
    """What follows from one node and the tasks on it."""

    node: Node
    assigned: tuple[Task, ...]
    tasks: Group
    peers: Mapping[NetworkID, Group]  # its endpoints, as others see them
    joined: frozenset[NetworkID]  # networks of tasks that are not dead
    used: frozenset[Used]  # and their secrets and configs


class Deriver:
    """Derives views from the store, keeping what did not change since the last call of `update`."""

    def __init__(self) -> None:
        self._revision = 0
        self._cluster: Cluster | None = None
        self._networks: dict[NetworkID, Network] = {}
        self._ingress: frozenset[NetworkID] = frozenset()
        self._parts: dict[NodeID, _Part] = {}
        self._serving = Serving()
        self._nodes: Group = {}
        self._peers: dict[NetworkID, Mapping[NodeID, Group]] = {}
        self._own: dict[NodeID, tuple[_Part, Group]] = {}
        self._payloads: dict[Used, AnyItem] = {}
        self._given: dict[NodeID, Group] = {}

    def update(self, store: Store) -> None:
        """Take over what the store holds now."""
        networks = {n.id: n for n in store.all(Network) if n.spec.node_local or (n.vni is not None and n.subnets)}
        if store.cluster is not self._cluster or not same(networks, self._networks):
            self._own = {}
        self._revision, self._cluster, self._networks = store.revision, store.cluster, networks
        ingress = frozenset(n.id for n in networks.values() if n.spec.ingress)
        if ingress != self._ingress:
            self._ingress, self._parts = ingress, {}
        on_node: dict[NodeID, list[Task]] = {}
        of_service: dict[ServiceID, list[Task]] = {}
        attached: list[Task] = []
        # What runs there may run on, but nobody can say so: nobody is led there. The node itself hears nothing of it
        down = {node.id for node in store.all(Node) if node.state == "down"}
        for task in store.all(Task):
            if task.node_id is None or task.status.state < TaskState.ASSIGNED:
                continue
            on_node.setdefault(task.node_id, []).append(task)
            if not task.serving or task.node_id in down:
                continue
            if task.attached:
                attached.append(task)
            else:
                of_service.setdefault(task.service_id, []).append(task)
        self._update_nodes(store, on_node)
        self._update_payloads(store)
        sites = sites_of(store.all(Node))
        spanning = {identifier: network for identifier, network in networks.items() if not network.spec.node_local}
        self._serving.update(spanning, store.all(Service), of_service, attached, sites)

    def of(self, node: NodeID, released: Collection[TaskID] = ()) -> NodeView | None:
        """The view of a node, which may stop the tasks in `released`; None when there is no such node."""
        part = self._parts.get(node)
        if part is None or self._cluster is None:
            return None
        networks = self._networks_of(part)
        taking = self._ingress | part.joined
        return NodeView(
            node=node,
            revision=self._revision,
            nodes=self._nodes,
            publishes=self._serving.publishes_at(part.node),
            networks=networks,
            tasks=_with_released(part, released),
            payloads=self._given.get(node, EMPTY),
            services=_on(part.joined, self._serving.services),
            endpoints=_on(part.joined, self._serving.endpoints),
            peers={network: self._peers[network] for network in taking if network in self._peers},
        )

    def _update_nodes(self, store: Store, on_node: Mapping[NodeID, list[Task]]) -> None:
        parts: dict[NodeID, _Part] = {}
        nodes: dict[str, AnyItem] = {}
        for node in store.all(Node):
            assigned = tuple(on_node.get(node.id, ()))
            known = self._parts.get(node.id)
            if known is None or known.node is not node or known.assigned != assigned:
                known = _part(node, assigned, known, self._ingress)
            parts[node.id] = known
            if node.vtep is not None:
                item = NodeItem(id=node.id, vtep=node.vtep)
                nodes[key_of(item)] = item
        self._nodes = nodes if nodes != self._nodes else self._nodes
        if same(parts, self._parts):
            return
        self._parts = parts
        peers: dict[NetworkID, dict[NodeID, Group]] = {}
        for part in parts.values():
            for network, group in part.peers.items():
                peers.setdefault(network, {})[part.node.id] = group
        before = self._peers
        self._peers = {
            network: before[network] if network in before and same(by_node, before[network]) else by_node
            for network, by_node in peers.items()
        }

    def _update_payloads(self, store: Store) -> None:
        """Each node that runs, or is about to run, what uses a secret or a config is given it; no other ever is."""
        known = self._payloads
        self._payloads = {
            (type(payload), payload.id): _payload_item(payload, known.get((type(payload), payload.id)))
            for payload in chain[Payload](store.all(Secret), store.all(Config), store.all(Credential))
        }
        given: dict[NodeID, Group] = {}
        for part in self._parts.values():
            items = [self._payloads[used] for used in part.used if used in self._payloads]
            if items:
                group = {key_of(item): item for item in items}
                before = self._given.get(part.node.id, EMPTY)
                given[part.node.id] = before if same(group, before) else group
        self._given = given

    def _networks_of(self, part: _Part) -> Group:
        known = self._own.get(part.node.id)
        if known is not None and known[0] is part:
            return known[1]
        assert self._cluster is not None
        items: dict[str, AnyItem] = {}
        for identifier in self._ingress | part.joined:
            network = self._networks.get(identifier)
            if network is not None:
                item = _network_item(network, self._cluster.data_path_port, part.node.attachments)
                items[key_of(item)] = item
        group = known[1] if known is not None and known[1] == items else items
        self._own[part.node.id] = (part, group)
        return group


def derive(store: Store, node: NodeID, released: Collection[TaskID] = ()) -> View:
    """The view of one node from scratch; empty when there is no such node."""
    deriver = Deriver()
    deriver.update(store)
    view = deriver.of(node, released)
    return view.flat() if view else {}


def _part(node: Node, assigned: tuple[Task, ...], known: _Part | None, ingress: Collection[NetworkID]) -> _Part:
    tasks: dict[str, AnyItem] = {}
    endpoints: dict[NetworkID, dict[str, AnyItem]] = {}
    joined: set[NetworkID] = set()
    used: set[Used] = set()
    for task in assigned:
        item = TaskItem(task=task)
        tasks[key_of(item)] = item
        if not task.status.state.dead:
            joined.update(attachment.network_id for attachment in task.attachments)
            used.update(payloads_of(task.spec.container_spec))
            used.add((Credential, PayloadID(task.service_id)))
            _add_peers(endpoints, node, task.attachments)
    # A node's address on a user network is only reserved; the ingress sandbox is where one has an interface
    _add_peers(endpoints, node, (a for a in node.attachments if a.network_id in ingress))
    before = known.peers if known else {}
    peers: dict[NetworkID, Group] = {
        network: before[network] if network in before and before[network] == group else group
        for network, group in endpoints.items()
    }
    return _Part(node, assigned, tasks, peers, frozenset(joined), frozenset(used))


def _add_peers(endpoints: dict[NetworkID, dict[str, AnyItem]], node: Node, attachments: Iterable[Attachment]) -> None:
    if node.vtep is None:  # it has not called yet: there is no way to it
        return
    for attachment in attachments:
        if not attachment.addresses:  # on a network that each node makes itself: nobody is led there
            continue
        item = PeerItem(
            network=attachment.network_id,
            endpoint=attachment.endpoint_id,
            addresses=attachment.addresses,
            mac=attachment.mac,
            vtep=node.vtep,
        )
        endpoints.setdefault(attachment.network_id, {})[key_of(item)] = item


def _payload_item(payload: Payload, known: AnyItem | None) -> AnyItem:
    """As before, if only labels changed: the data of secrets and configs never does."""
    if isinstance(known, PayloadItem) and known.data == payload.spec.data:
        return known
    return ITEM_OF[type(payload)](id=payload.id, data=payload.spec.data, templated=payload.spec.templating is not None)


def _network_item(network: Network, port: int, attachments: Iterable[Attachment]) -> NetworkItem | LocalNetworkItem:
    if network.spec.node_local:
        return LocalNetworkItem(id=network.id, spec=network.spec)
    assert network.vni is not None
    mtu = network.spec.options.get(MTU_OPTION, "")
    return NetworkItem(
        id=network.id,
        name=network.spec.name,
        vni=network.vni,
        port=port,
        subnets=network.subnets,
        ingress=network.spec.ingress,
        internal=network.spec.internal,
        mtu=int(mtu) if mtu.isascii() and mtu.isdigit() else 0,
        own=next((a for a in attachments if a.network_id == network.id), None),
    )


def _with_released(part: _Part, released: Collection[TaskID]) -> Group:
    free = [task for task in part.assigned if task.id in released] if released else []
    if not free:
        return part.tasks
    items = dict(part.tasks)
    for task in free:
        item = TaskItem(task=task, released=True)
        items[key_of(item)] = item
    return items


def _on(networks: Iterable[NetworkID], groups: Mapping[NetworkID, Group]) -> Mapping[NetworkID, Group]:
    return {network: groups[network] for network in networks if network in groups}
