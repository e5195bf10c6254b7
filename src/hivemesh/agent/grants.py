"""What plain containers are granted: by managers on networks of the swarm, by this node on its own; one answer."""

import errno
import os
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from hivemesh.agent.leases import HOST_PORTS
from hivemesh.agent.lent import LentNetworks
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.records import LocalRequest
from hivemesh.cnm import local
from hivemesh.dataplane.plan.bridge import way_out
from hivemesh.model.addr import Address, host_port
from hivemesh.model.errors import HivemeshError, Invalid, NotFound, Unsupported
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID, new_id
from hivemesh.model.local import Local, LocalNetwork, PublishedPort
from hivemesh.model.service import ContainerSpec, NetworkAttachmentConfig, PortConfig, TaskSpec
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus
from hivemesh.wire.control import AttachReply, AttachRequest, Joining
from hivemesh.wire.engine.containers import HOST_GATEWAY

Number = tuple[str, int]
"""Protocol and port."""
KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


class Swarm(Protocol):
    """`agent.join.Managers`."""

    async def attach(self, request: AttachRequest) -> AttachReply: ...
    async def detach(self, task: TaskID) -> None: ...


class Grants:
    """`agent.container.Managers` for containers whose networks may be of either kind.

    `managers` is None outside a swarm. `busy` says which ports of this node services publish.
    """

    def __init__(
        self,
        networks: LocalNetworks,
        managers: Swarm | None,
        busy: Callable[[], Iterable[Number]] = tuple,
        lent: LentNetworks | None = None,
    ) -> None:
        self._networks = networks
        self._managers = managers
        self._busy = busy
        self._lent = lent
        self._here_only: set[TaskID] = set()  # no manager knows of these
        self._next_port = HOST_PORTS.start

    def adopt(self, task: Task) -> None:
        """What an earlier daemon was granted for a container that may still be up."""
        self._networks.hold(task, quiet=True)
        if all(self._networks.has(config.target) for config in task.spec.networks):
            self._here_only.add(task.id)

    async def attach(self, request: AttachRequest) -> AttachReply:
        """Raises what managers raise; for networks of this node `Invalid`, `Exhausted`, or `HivemeshError` in Docker's
        words (an address or a port is somebody else's). Then nothing is granted that was not before.
        """
        ours = [joining for joining in request.networks if self._networks.has(joining.network)]
        others = tuple(joining for joining in request.networks if joining not in ours)
        for joining in others:
            _refuse_for_swarm(joining)
        before = self._networks.held_by(request.task)
        task = self._local_task(request, ours, before)
        if request.check and not others:
            return self._merged(request, task, None)
        if not request.check:
            self._networks.hold(task)
        try:
            reply = await self._ask(request, task, others) if others else None
        except BaseException:
            if not request.check:
                self._restore(request.task, before)
            raise
        merged = self._merged(request, task, reply)
        if request.check:
            return merged
        if reply is not None and reply.local:
            merged = msgspec.structs.replace(merged, task=await self._place(merged.task, reply, before))
        self._networks.hold(merged.task)
        if others:
            self._here_only.discard(request.task)
            return merged
        if before is not None and request.task not in self._here_only and self._managers is not None:
            await self._managers.detach(request.task)
        self._here_only.add(request.task)
        return merged

    async def detach(self, task: TaskID) -> None:
        """Raises `Unavailable` when the managers hold something for it and cannot be told."""
        self._networks.release(task)
        if self._lent is not None:
            self._lent.release(task)
        if self._managers is not None and task not in self._here_only:
            await self._managers.detach(task)
        self._here_only.discard(task)

    def _restore(self, task: TaskID, before: Task | None) -> None:
        if before is None:
            self._networks.release(task)
        else:
            self._networks.hold(before)

    async def _place(self, task: Task, reply: AttachReply, before: Task | None) -> Task:
        """With addresses on networks that this node makes itself; when it cannot, nothing is granted any more."""
        assert self._lent is not None  # else no manager would have spoken
        try:
            return self._lent.complete(task, {item.id: item for item in reply.local})
        except BaseException:
            self._restore(task.id, before)
            if before is None and self._managers is not None:
                await self._managers.detach(task.id)
            raise

    # --- of this node -----------------------------------------------------------------------------------------------

    def _local_task(self, request: AttachRequest, joinings: list[Joining], before: Task | None) -> Task:
        """The container's place on networks of this node, and nothing else."""
        networks = [self._networks.find(joining.network) for joining in joinings]
        if len({network.id for network in networks}) < len(networks):
            raise Invalid(f"network {networks[-1].name} is named twice")
        attachments = tuple(
            self._attachment(network, joining, request.task, before)
            for network, joining in zip(networks, joinings, strict=True)
        )
        spec = TaskSpec(
            container_spec=request.spec,
            networks=tuple(
                NetworkAttachmentConfig(target=network.id, aliases=joining.aliases)
                for network, joining in zip(networks, joinings, strict=True)
            ),
            runtime="attachment",
        )
        task = Task(
            id=request.task, service_id=ServiceID(""), service_name="", slot=0, spec=spec, container=request.container,
            status=TaskStatus(state=TaskState.RUNNING, container_id=request.container_id), attachments=attachments,
        )  # fmt: skip
        hosts = self._hosts(request.spec, task)
        spec = msgspec.structs.replace(spec, container_spec=hosts)
        return msgspec.structs.replace(task, spec=spec, local=self._extras(request, before))

    def _attachment(self, network: LocalNetwork, joining: Joining, task: TaskID, before: Task | None) -> Attachment:
        if network.spec.config_only:
            raise Invalid(f"configuration only network {network.name} cannot have containers: it holds settings")
        mine = next((a for a in before.attachments if a.network_id == network.id), None) if before else None
        mac = local.parse_mac(joining.mac) if joining.mac else ""
        if mine is not None and set(joining.addresses) <= {i.ip for i in mine.addresses} and mac in ("", mine.mac):
            return msgspec.structs.replace(mine, priority=joining.priority)
        if network.is_default and joining.aliases:
            raise Invalid("network-scoped alias is supported only for containers in user defined networks")
        if joining.addresses and network.is_default:
            raise Invalid("user specified IP address is supported on user defined networks only")
        if joining.addresses and not any(config.subnet for config in network.spec.ipam):
            raise Invalid(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        members = [(of, a) for of, a in self._networks.members(network.id) if of.id != task]
        return local.attachment(
            network,
            [a for _, a in members],
            endpoint=mine.endpoint_id if mine else EndpointID(new_id()),
            wanted=joining.addresses,
            mac=mac,
            priority=joining.priority,
            cursor=self._networks.cursor,
        )

    def _hosts(self, spec: ContainerSpec, task: Task) -> ContainerSpec:
        """With an address for `host-gateway`: the node's, on the network through which the container leaves."""
        if not any(line.startswith(HOST_GATEWAY) for line in spec.hosts):
            return spec
        ways = {a.network_id: self._networks.known(a.network_id) for a in task.attachments}
        way = way_out(task, {key: network for key, network in ways.items() if network is not None}, 4, bridges=True)
        if way is None:
            raise Unsupported("host-gateway needs a bridge network that leads out: give the node's address instead")
        gateway = str(way.subnet.gateway)
        return msgspec.structs.replace(spec, hosts=tuple(line.replace(HOST_GATEWAY, gateway, 1) for line in spec.hosts))

    def _extras(self, request: AttachRequest, before: Task | None) -> Local:
        if not isinstance(request, LocalRequest):
            return Local()
        ports = request.published if request.check else self._ports(request, before)
        return Local(ports=ports, links=request.links)

    # --- ports ------------------------------------------------------------------------------------------------------

    def _ports(self, request: LocalRequest, before: Task | None) -> tuple[PublishedPort, ...]:
        """With real numbers; those the container has it keeps. Raises `HivemeshError` in Docker's words."""
        had = before.local.ports if before is not None else ()
        taken = [port for task in self._networks.holders if task.id != request.task for port in task.local.ports]
        busy = set(self._busy())
        found: list[PublishedPort] = []
        for wanted in request.published:
            kept = next((p for p in had if p not in found and _answers(p, wanted)), None)
            found.append(kept or self._choose(wanted, [*taken, *found], busy))
        return tuple(found)

    def _choose(self, wanted: PublishedPort, taken: list[PublishedPort], busy: set[Number]) -> PublishedPort:
        numbers: Iterable[int] = range(wanted.port, max(wanted.port, wanted.last) + 1)
        if not wanted.port:
            start = self._next_port if self._next_port in HOST_PORTS else HOST_PORTS.start
            numbers = (*range(start, HOST_PORTS.stop), *range(HOST_PORTS.start, start))
        why = ""
        for number in numbers:
            candidate = msgspec.structs.replace(wanted, port=number, last=0)
            if (wanted.protocol, number) in busy or any(_meet(candidate, other) for other in taken):
                why = why or f"Bind for {_where(candidate)} failed: port is already allocated"
                continue
            if reason := _cannot_bind(candidate):
                why = why or f"failed to bind host port for {_where(candidate)}/{wanted.protocol}: {reason}"
                continue
            if not wanted.port:
                self._next_port = number + 1
            return candidate
        raise HivemeshError(f"driver failed programming external connectivity: {why}")

    # --- of the swarm -----------------------------------------------------------------------------------------------

    async def _ask(self, request: AttachRequest, task: Task, joinings: tuple[Joining, ...]) -> AttachReply:
        if self._managers is None:
            raise NotFound(f"network {joinings[0].network} not found")
        ports = {
            (port.protocol, port.target, port.port): PortConfig(
                protocol=port.protocol, target_port=port.target, published_port=port.port, publish_mode="host"
            )
            for port in task.local.ports
            if port.port
        }
        plain = AttachRequest(
            task=request.task,
            container=request.container,
            container_id=request.container_id,
            networks=joinings,
            spec=task.spec.container_spec,
            ports=tuple(ports.values()),
            check=request.check,
        )
        return await self._managers.attach(plain)

    def _merged(self, request: AttachRequest, task: Task, reply: AttachReply | None) -> AttachReply:
        """One task, its networks in the order they were asked for in."""
        if reply is None:
            names = tuple(self._networks.find(joining.network).name for joining in request.networks)
            return AttachReply(task=task, names=names)
        ours, theirs = iter(task.spec.networks), iter(zip(reply.task.spec.networks, reply.names, strict=True))
        configs, names_found = [], []
        for joining in request.networks:
            if self._networks.has(joining.network):
                configs.append(next(ours))
                names_found.append(self._networks.find(joining.network).name)
            else:
                config, name = next(theirs)
                configs.append(config)
                names_found.append(name)
        by_network = {a.network_id: a for a in (*task.attachments, *reply.task.attachments)}
        order = [NetworkID(config.target) for config in configs]
        merged = msgspec.structs.replace(
            reply.task,
            spec=msgspec.structs.replace(reply.task.spec, networks=tuple(configs)),
            attachments=tuple(by_network[network] for network in order if network in by_network),
            local=task.local,
        )
        return AttachReply(task=merged, names=tuple(names_found))


def _refuse_for_swarm(joining: Joining) -> None:
    if joining.mac:
        raise Unsupported(
            f"MacAddress is not supported on networks of the swarm (network {joining.network}): a MAC follows from the "
            "address"
        )
    if joining.priority:
        raise Unsupported(f"GwPriority is not supported on networks of the swarm (network {joining.network})")


def _answers(port: PublishedPort, wanted: PublishedPort) -> bool:
    same = (port.protocol, port.target, port.address) == (wanted.protocol, wanted.target, wanted.address)
    return same and (not wanted.port or wanted.port <= port.port <= max(wanted.port, wanted.last))


def _meet(port: PublishedPort, other: PublishedPort) -> bool:
    if (port.protocol, port.port) != (other.protocol, other.port):
        return False
    return _everywhere(port.address) or _everywhere(other.address) or port.address == other.address


def _everywhere(address: Address | None) -> bool:
    return address is None or address.is_unspecified


def _where(port: PublishedPort) -> str:
    return host_port(str(port.address or "0.0.0.0"), port.port)


def _cannot_bind(port: PublishedPort) -> str:
    """Why a program of this machine stands in the way, or the address does; empty if nothing does.

    Packets of a published port never reach a socket; one that listens there would silently lose its clients.
    """
    kind, protocol = KINDS[port.protocol]
    addresses = [str(port.address)] if port.address is not None else ["0.0.0.0", "::"]
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, kind, protocol) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if kind == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections do not count
                probe.bind((address, port.port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                return os.strerror(error.errno).lower()
    return ""
