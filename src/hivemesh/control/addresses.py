"""Who holds which address of a network, and which service insists on one: `--network name=back,driver-opt=ip=10.0.9.5`.

An address that a service insists on is kept for its task from the moment the service is there, also while no task runs:
nobody else is given it. One task has it at a time, so its successor waits until it is seen dead. All is read off the
objects of a view.
"""

from collections.abc import Iterable, Mapping
from typing import cast

from hivemesh.model.addr import Address, Interface, address_of, parse_address
from hivemesh.model.errors import Conflict, Invalid, Unsupported
from hivemesh.model.ids import NetworkID, ServiceID
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import NetworkAttachmentConfig, Service, ServiceSpec
from hivemesh.model.task import Task, TaskState
from hivemesh.store.tables import View

OPTIONS = {"ip": 4, "hivemesh.ip": 4, "ip6": 6, "hivemesh.ip6": 6}
"""Driver options of a service's network that name its address, by IP version."""

Holder = Node | Service | Task


def held(view: View, network: NetworkID) -> Iterable[tuple[Holder, tuple[Interface, ...]]]:
    """Who holds what on a network. A dead task holds nothing."""
    for node in view.all(Node):
        for attachment in node.attachments:
            if attachment.network_id == network:
                yield node, attachment.addresses
    for service in view.all(Service):
        for vip in service.vips:
            if vip.network_id == network:
                yield service, vip.addresses
    for task in view.all(Task):
        if not task.status.state.dead:
            for attachment in task.attachments:
                if attachment.network_id == network:
                    yield task, attachment.addresses


def wanted(attachment: NetworkAttachmentConfig, name: str = "") -> tuple[Address, ...]:
    """The addresses that `attachment` insists on, one per family at most; `name` is its network's, for errors.

    Raises `Unsupported` for any other driver option, `Invalid` for what is no address of that family, or given twice.
    """
    found: dict[int, Address] = {}
    for option, text in sorted(attachment.driver_opts.items()):
        version = OPTIONS.get(option)
        if version is None:
            raise Unsupported(
                f"network {name}: driver option {option!r} of a service is not supported: use ip or ip6, for a static "
                "address"
            )
        address = parse_address(text, f"address in driver option {option!r} of network {name}")
        if address.version != version:
            raise Invalid(f"network {name}: driver option {option!r} is for IPv{version}, not for {address}")
        if version in found:
            raise Invalid(f"network {name}: two static addresses of one family: give {option!r} once")
        found[version] = address
    return tuple(found.values())


def kept(view: View, network: NetworkID) -> Mapping[Address, Service]:
    """The addresses of a network that services insist on, or would again if their update failed."""
    return {
        address: service
        for service in view.all(Service)
        for spec in _specs(service)
        for attachment in spec.task_template.networks
        if attachment.target == network and attachment.driver_opts
        for address in wanted(attachment)
    }


def _specs(service: Service) -> Iterable[ServiceSpec]:
    yield service.spec
    status = service.update_status
    if service.previous_spec is not None and status is not None and status.state in ("updating", "paused"):
        yield service.previous_spec


def check(view: View, spec: ServiceSpec, current: Service | None) -> None:
    """Whether the service can have the addresses it insists on; its networks are ids already. `current` is the service
    being updated.

    Raises `Invalid` when it may have several tasks at once or the address is none of the network's, `Conflict` when it
    is another's.
    """
    for attachment in spec.task_template.networks:
        network = cast(Network, view.get(Network, attachment.target))
        addresses = wanted(attachment, network.spec.name)
        if addresses:
            _check_alone(spec, network.spec.name)
        if addresses and network.spec.node_local:
            raise Unsupported(
                f"network {network.spec.name}: a static address is not supported on a network of driver "
                f"{network.spec.driver}: each node gives addresses of its own"
            )
        for address in addresses:
            _check_place(network, address)
            _check_free(view, network, address, current.id if current is not None else None)


def _check_alone(spec: ServiceSpec, network: str) -> None:
    if spec.mode.name != "replicated" or spec.replicas > 1:
        raise Invalid(
            f"network {network}: a static address is for one task: use mode replicated with at most 1 replica, or "
            "leave the address out"
        )
    for config, field in ((spec.update_config, "UpdateConfig"), (spec.rollback_config, "RollbackConfig")):
        if config is not None and config.order == "start-first":
            raise Invalid(
                f"{field}: order start-first would need the static address of network {network} twice: use stop-first"
            )


def _check_place(network: Network, address: Address) -> None:
    subnet = next((subnet for subnet in network.subnets if address in subnet.prefix), None)
    if subnet is None:
        subnets = " or ".join(str(subnet.prefix) for subnet in network.subnets) or "it has no subnet yet"
        raise Invalid(f"invalid address {address}: It does not belong to network {network.spec.name} ({subnets})")
    ends = [subnet.prefix.network_address]
    if address.version == 4:
        ends.append(subnet.prefix.broadcast_address)
    if address == subnet.gateway or address in ends:
        raise Conflict(f"network {network.spec.name}: address {address} is reserved: it is the subnet's own or gateway")


def _check_free(view: View, network: Network, address: Address, own: ServiceID | None) -> None:
    keeper = kept(view, network.id).get(address)
    who = f"service {keeper.spec.name}" if keeper is not None and keeper.id != own else ""
    for holder, addresses in held(view, network.id):
        if any(address_of(interface) == address for interface in addresses) and not _gives_up(holder, own):
            who = who or _words(holder)
    if who:
        raise Conflict(f"network {network.spec.name}: address {address} is already in use by {who}")


def _gives_up(holder: Holder, own: ServiceID | None) -> bool:
    """The service's own task, or one on its way out: the new task waits for its end."""
    return isinstance(holder, Task) and (holder.desired > TaskState.RUNNING or holder.service_id == own)


def _words(holder: Holder) -> str:
    match holder:
        case Node():
            return f"node {holder.description.hostname or holder.id}"
        case Service():
            return f"the virtual address of service {holder.spec.name}"
        case Task():
            return f"container {holder.container}" if holder.attached else f"task {holder.name}"
