"""Plain containers on swarm networks (`docker run --network`): a task that nobody made, and nobody but its node moves.

The node says which networks a container should be on and gets, in one commit, a task with addresses on exactly those.
It is nobody's replica: it runs from the start, its node alone ends it, and it goes with its node.
"""

from collections.abc import Iterable

from hivemesh.control import containerspec, lookup
from hivemesh.control.grants import Grants, NewId
from hivemesh.model.addr import Address, address_of
from hivemesh.model.errors import Conflict, Forbidden, Invalid
from hivemesh.model.ids import DIGITS, ID_LENGTH, NodeID, ServiceID, TaskID
from hivemesh.model.network import Network
from hivemesh.model.service import NetworkAttachmentConfig, PortConfig, Service, TaskSpec
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus
from hivemesh.store.tables import Transaction
from hivemesh.wire.control import AttachReply, AttachRequest, Joining, LocalNetworkItem

MESSAGE = "started"
MAX_NETWORKS = 64
"""Of one container; every one of them is an interface."""


def attach(tx: Transaction, node: NodeID, request: AttachRequest, now: float, new_id: NewId) -> AttachReply:
    """Put the container on exactly the networks asked for. What it has there already it keeps.

    Raises `NotFound` (no such network), `Forbidden` (not attachable), `Invalid` (a name or address that cannot be),
    `Conflict` (an address, a port or the id is somebody else's) or `Exhausted`.
    """
    before = _own(tx, node, request)
    containerspec.check_names(request.spec)
    networks = _networks(tx, request)
    _check_ports(tx, node, request)
    wanted = zip(networks, request.networks, strict=True)
    grants = Grants(tx, new_id)
    attachments = tuple(_attachment(grants, before, network, joining) for network, joining in wanted)
    configs = tuple(
        NetworkAttachmentConfig(target=network.id, aliases=joining.aliases)
        for network, joining in zip(networks, request.networks, strict=True)
    )
    task = Task(
        id=request.task,
        service_id=ServiceID(""),
        service_name="",
        slot=0,
        spec=TaskSpec(container_spec=request.spec, networks=configs, runtime="attachment"),
        created=before.created if before is not None else now,
        updated=now,
        node_id=node,
        status=TaskStatus(timestamp=now, state=TaskState.RUNNING, message=MESSAGE, container_id=request.container_id),
        ports=request.ports,
        attachments=attachments,
        container=request.container,
    )
    if before is not None and _equal(before, task):
        task = before
    elif not request.check:
        tx.put(task)
        grants.remember(tx)
    return AttachReply(
        task=task,
        names=tuple(network.spec.name for network in networks),
        local=tuple(LocalNetworkItem(id=found.id, spec=found.spec) for found in networks if found.spec.node_local),
    )


def detach(tx: Transaction, node: NodeID, identifier: TaskID) -> None:
    """Forget the container; one that is not known is fine. Raises `Forbidden` when it is another node's."""
    task = tx.get(Task, identifier)
    if task is None:
        return
    if not task.attached or task.node_id != node:
        raise Forbidden(f"task {identifier} is no container of this node")
    tx.delete(task)


def drop(tx: Transaction, node: NodeID) -> None:
    """The node leaves the swarm: its containers lose their networks, now."""
    for task in tx.tasks_on(node):
        if task.attached:
            tx.delete(task)


def _own(tx: Transaction, node: NodeID, request: AttachRequest) -> Task | None:
    """What the container has already."""
    if len(request.task) != ID_LENGTH or set(request.task) - set(DIGITS):
        raise Invalid(f"invalid task {request.task!r}: expected {ID_LENGTH} digits and small letters")
    if not request.container:
        raise Invalid("a container needs a name to be attached")
    task = tx.get(Task, request.task)
    if task is not None and (not task.attached or task.node_id != node):
        raise Conflict(f"the id {request.task} belongs to another task")
    return task


def _networks(tx: Transaction, request: AttachRequest) -> list[Network]:
    if len(request.networks) > MAX_NETWORKS:
        raise Invalid(f"a container can be on {MAX_NETWORKS} networks at most")
    found: list[Network] = []
    for joining in request.networks:
        network = lookup.network(tx, joining.network)
        name = network.spec.name
        if not network.spec.attachable:
            raise Forbidden(f"network {name} not manually attachable")
        if network in found:
            raise Invalid(f"network {name} is named twice")
        for alias in joining.aliases:
            containerspec.check_name(alias, f"alias of network {name}")
        versions = [address.version for address in joining.addresses]
        if len(set(versions)) < len(versions):
            raise Invalid(f"network {name}: a container can have one address of each family")
        found.append(network)
    return found


def _attachment(grants: Grants, before: Task | None, network: Network, joining: Joining) -> Attachment:
    """The one it holds, unless another address is wanted now."""
    for attachment in before.attachments if before is not None else ():
        if attachment.network_id == network.id and _has(attachment, joining.addresses):
            return attachment
    return grants.attachment(network, joining.addresses)


def _has(attachment: Attachment, wanted: Iterable[Address]) -> bool:
    return set(wanted) <= {address_of(interface) for interface in attachment.addresses}


def _check_ports(tx: Transaction, node: NodeID, request: AttachRequest) -> None:
    """Ports of the node itself: not those the mesh answers, and not those of another task there."""
    wanted = {(port.protocol, port.published_port) for port in request.ports if port.published_port}
    if not wanted:
        return
    for service in tx.all(Service):
        for number in wanted & _numbers(service.ports, "ingress"):
            raise Conflict(f"port {number[1]}/{number[0]} is already published by service {service.spec.name}")
    for task in tx.tasks_on(node):
        if task.id != request.task and not task.status.state.dead:
            for number in wanted & _numbers(task.ports, "host"):
                name = task.container or task.name
                raise Conflict(f"port {number[1]}/{number[0]} is already published on this node by {name}")


def _numbers(ports: Iterable[PortConfig], mode: str) -> set[tuple[str, int]]:
    return {(port.protocol, port.published_port) for port in ports if port.publish_mode == mode and port.published_port}


def _equal(before: Task, after: Task) -> bool:
    """But for when."""
    return (before.spec, before.ports, before.attachments, before.container, before.status.container_id) == (
        after.spec,
        after.ports,
        after.attachments,
        after.container,
        after.status.container_id,
    )
