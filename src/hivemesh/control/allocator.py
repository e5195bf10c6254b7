"""Granting: subnets and VNIs to networks, addresses to nodes, VIPs and ports to services, addresses to tasks.

One pass over a transaction. What objects hold is the truth; leases are rebuilt from it whenever something is asked
for. Whoever cannot be served stays as it is with the reason in its `error` (a task: `status.err`), and is served by
the first pass that finds room.
"""

from collections.abc import Iterable

import msgspec

from hivemesh.control import addresses, networks, ports
from hivemesh.control.grants import Grants, NewId
from hivemesh.ipam import pools
from hivemesh.model.addr import FIRST_VNI, VNI, Address, Prefix, address_of
from hivemesh.model.cursor import Cursor
from hivemesh.model.errors import Conflict, Exhausted, Invalid
from hivemesh.model.ids import NetworkID
from hivemesh.model.network import Network, Subnet
from hivemesh.model.node import Node
from hivemesh.model.service import VIP, Service
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus
from hivemesh.store.tables import Transaction

SUBNET6_SIZE = 64
PENDING_MESSAGE = "pending task scheduling"


def allocate(tx: Transaction, now: float, new_id: NewId) -> None:
    """Grant whatever is asked for and possible."""
    _allocate_networks(tx)
    grants = Grants(tx, new_id)
    _allocate_nodes(tx, grants)
    _allocate_services(tx, grants)
    _allocate_tasks(tx, now, grants)
    grants.remember(tx)


# --- networks ----------------------------------------------------------------------------------------------------


def _allocate_networks(tx: Transaction) -> None:
    for network in [network for network in tx.all(Network) if network.vni is None and not network.spec.node_local]:
        try:
            subnets = _subnets(tx, network)
            granted = msgspec.structs.replace(network, subnets=subnets, vni=_vni(tx, network), error="")
        except Exhausted as error:
            granted = msgspec.structs.replace(network, error=f"network {network.spec.name}: {error}")
        tx.put(granted)


def _vni(tx: Transaction, network: Network) -> VNI:
    wanted = networks.wanted_vni(network.spec)
    if wanted is not None:
        return VNI(wanted)
    used = {other.vni for other in tx.all(Network) if other.vni is not None}
    highest = max((vni for vni in used if vni >= FIRST_VNI), default=FIRST_VNI - 1)
    cursor = tx.get(Cursor, "vni") or Cursor(id="vni")
    number = max(cursor.number, highest) + 1
    if number > networks.MAX_VNI:
        number = next((vni for vni in range(FIRST_VNI, networks.MAX_VNI + 1) if vni not in used), 0)
        if not number:
            raise Exhausted("no free VNI")
    tx.put(msgspec.structs.replace(cursor, number=number))
    return VNI(number)


def _subnets(tx: Transaction, network: Network) -> tuple[Subnet, ...]:
    """Those the user gave; IPv4 always, IPv6 if asked for and for ingress, which serves both worlds."""
    given = networks.given_subnets(network.spec)
    versions = {subnet.prefix.version for subnet in given}
    cluster = tx.cluster
    taken = list(networks.taken(tx))
    chosen = []
    if 4 not in versions:
        chosen.append(_cut(cluster.pools, cluster.subnet_size, taken))
    chosen += given
    if 6 not in versions and (network.spec.ipv6 or network.spec.ingress) and cluster.pool6 is not None:
        chosen.append(_cut([cluster.pool6], SUBNET6_SIZE, taken))
    return tuple(sorted(chosen, key=lambda subnet: subnet.prefix.version))


def _cut(ranges: Iterable[Prefix], size: int, taken: list[Prefix]) -> Subnet:
    prefix = pools.cut(list(ranges), size, taken)
    return Subnet(prefix=prefix, gateway=networks.first_host(prefix))


# --- nodes -------------------------------------------------------------------------------------------------------


def _allocate_nodes(tx: Transaction, grants: Grants) -> None:
    """The node's own address: on ingress always, on other networks while a task of the node is there."""
    ingress = ports.ingress(tx)
    for node in list(tx.all(Node)):
        wanted: dict[NetworkID, Network] = {}
        if ingress is not None:
            wanted[ingress.id] = ingress
        for task in tx.tasks_on(node.id):
            if not task.status.state.dead:
                for attachment in task.attachments:
                    network = tx.get(Network, attachment.network_id)
                    if network is not None and not network.spec.node_local:
                        wanted.setdefault(network.id, network)
        kept = [attachment for attachment in node.attachments if attachment.network_id in wanted]
        present = {attachment.network_id for attachment in kept}
        for attachment in node.attachments:
            if attachment.network_id not in wanted:
                grants.release(attachment.network_id, attachment.addresses)
        for network in wanted.values():
            if network.id not in present:
                try:
                    kept.append(grants.attachment(network))
                except Exhausted:
                    continue  # shown by the tasks that find no address either
        tx.put(msgspec.structs.replace(node, attachments=tuple(kept)))


# --- services ----------------------------------------------------------------------------------------------------


def _allocate_services(tx: Transaction, grants: Grants) -> None:
    for service in list(tx.all(Service)):
        granted, vips, error = (service.ports, service.doors), service.vips, ""
        try:
            granted = ports.grant(tx, service)
            vips, error = _vips(tx, service, grants)
        except Exhausted as exhausted:
            error = str(exhausted)
        numbers, doors = granted
        tx.put(msgspec.structs.replace(service, ports=numbers, doors=doors, vips=vips, error=error))


def _vips(tx: Transaction, service: Service, grants: Grants) -> tuple[tuple[VIP, ...], str]:
    """The service's VIPs, as far as there are addresses, and what was missing. Raises `Exhausted`.

    Those it needs no more are given up even when others cannot be had: it may be them that another service waits for.
    """
    wanted = _networks_of(tx, service) if service.spec.endpoint_spec.mode == "vip" else []
    wanted = [network for network in wanted if not network.spec.node_local]
    if [network.id for network in wanted] == [vip.network_id for vip in service.vips]:
        return service.vips, ""
    present = {vip.network_id: vip for vip in service.vips}
    wanted_ids = {network.id for network in wanted}
    for vip in service.vips:
        if vip.network_id not in wanted_ids:
            grants.release(vip.network_id, vip.addresses)
    granted, error = [], ""
    for network in wanted:
        try:
            granted.append(present.get(network.id) or VIP(network_id=network.id, addresses=grants.addresses(network)))
        except Exhausted as exhausted:
            error = error or str(exhausted)
    return tuple(granted), error


def _networks_of(tx: Transaction, service: Service) -> list[Network]:
    """Ingress first when the service publishes there, then as its specification lists them. Raises `Exhausted`."""
    found: list[Network] = []
    if any(port.publish_mode == "ingress" for port in service.spec.endpoint_spec.ports):
        ingress = ports.ingress(tx)
        if ingress is None:
            raise Exhausted("there is no ingress network: make one with `network create --driver overlay --ingress`")
        found.append(ingress)
    for attachment in service.spec.task_template.networks:
        network = tx.get(Network, attachment.target)
        if network is None:
            raise Exhausted(f"network {attachment.target} is gone")
        found.append(network)
    return found


# --- tasks -------------------------------------------------------------------------------------------------------


def _allocate_tasks(tx: Transaction, now: float, grants: Grants) -> None:
    waiting = [
        task for task in tx.all(Task) if task.status.state == TaskState.NEW and task.desired <= TaskState.RUNNING
    ]
    for task in sorted(waiting, key=lambda task: (task.created, task.service_id, task.slot)):
        service = tx.get(Service, task.service_id)
        if service is not None:
            tx.put(_allocate_task(tx, task, service, now, grants))


def _allocate_task(tx: Transaction, task: Task, service: Service, now: float, grants: Grants) -> Task:
    if service.error:
        return _refused(task, service.error)
    attachments: list[Attachment] = []
    try:
        for network in _networks_of(tx, service):
            wanted = _static(service, network)
            for address in wanted:
                _take_over(tx, task, network, address, now, grants)
            attachments.append(grants.attachment(network, wanted, service.id))
    except (Exhausted, Conflict, Invalid) as error:
        for attachment in attachments:
            grants.undo(attachment)
        return _refused(task, str(error))
    return msgspec.structs.replace(
        task,
        attachments=tuple(attachments),
        ports=service.ports,
        doors=service.doors,
        status=TaskStatus(timestamp=now, state=TaskState.PENDING, message=PENDING_MESSAGE),
        updated=now,
    )


def _static(service: Service, network: Network) -> tuple[Address, ...]:
    """The addresses that the service insists on."""
    for attachment in service.spec.task_template.networks:
        if attachment.target == network.id:
            return addresses.wanted(attachment, network.spec.name)
    return ()


def _take_over(tx: Transaction, task: Task, network: Network, address: Address, now: float, grants: Grants) -> None:
    """A static address goes to the successor of a task whose node is down: nobody else may have it, and waiting for the
    node could take for ever. The old task is given up, so that no node leads to it; its own stops it when it is back.
    """
    for other in tx.tasks_of(task.service_id):
        node = tx.get(Node, other.node_id) if other.node_id is not None else None
        gone = other.desired > TaskState.RUNNING and node is not None and node.state == "down"
        if other.id == task.id or other.status.state.dead or not gone:
            continue
        for attachment in other.attachments:
            if attachment.network_id == network.id and address in map(address_of, attachment.addresses):
                status = msgspec.structs.replace(
                    other.status,
                    timestamp=now,
                    state=TaskState.ORPHANED,
                    message="orphaned",
                    err=f"the node is down; task {task.id} has its address {address} now",
                )
                tx.put(msgspec.structs.replace(other, status=status, updated=now))
                for held in other.attachments:
                    grants.release(held.network_id, held.addresses)
                break


def _refused(task: Task, reason: str) -> Task:
    return msgspec.structs.replace(task, status=msgspec.structs.replace(task.status, err=reason))
