"""What somebody asks, found in this node's view: who begins, what the name means, which backends are there. Pure."""

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from hivemesh.cnm.node import ViewParts
from hivemesh.dataplane.plan.names import INGRESS_SANDBOX, overlay_namespace, sandbox_namespace
from hivemesh.kernel.api import HOST
from hivemesh.model.addr import Address
from hivemesh.model.errors import Invalid, NotFound
from hivemesh.model.task import Task
from hivemesh.trace.outside import Hosted, back_out, entered, hosted, left, published
from hivemesh.trace.way import Plans, Step, arrived_back, asked_name, virtual
from hivemesh.wire.control import NetworkItem, ServiceItem
from hivemesh.wire.trace import Leg, Question

TASKS = "tasks."
"""Before a service's name: all of its tasks' addresses, whether it has a virtual one or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """From the sandbox `namespace` of this node to the end of the leg; its `peer` is this node's VTEP."""

    namespace: str
    leg: Leg


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What callers ask for, where a balancer leads them on: from there, that address and port."""

    namespace: str
    address: Address
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a question leads: what all ways share, and the ways."""

    source: str
    target: str
    begin: tuple[Step, ...]
    paths: tuple[Path, ...]
    end: tuple[Step, ...] = ()  # what all ways share on their way back
    whole: Whole | None = None
    hosted: tuple[Hosted, ...] = ()  # instead of paths


def find(parts: ViewParts, plans: Plans, question: Question, vtep: Address, own: Collection[Address]) -> Found:
    """`own` are this machine's addresses. Raises `NotFound`, or `Invalid` for what cannot be traced, in words."""
    host, port = split(question.target)
    if not question.source:
        return _of_port(parts, plans, question, host, port, vtep, own)
    task = _task(parts, question.source)
    namespace = sandbox_namespace(task.id)
    if namespace not in plans:
        raise NotFound(f"task {task.name} has no sandbox here yet: it is {task.status.state.name.lower()}")
    networks = [parts.networks[a.network_id] for a in task.attachments if a.network_id in parts.networks]
    networks = [network for network in networks if not network.ingress]
    steps, targets = _targets(parts, plans, namespace, networks, host)
    paths = tuple(
        Path(
            namespace=namespace,
            leg=Leg(
                network=network.id, source=_own(task, network, address), destination=address, peer=vtep,
                protocol=question.protocol, port=port,
            ),
        )
        for network, address in targets
    )  # fmt: skip
    virtual = next((step for step in steps if step.passage is not None), None)
    whole: Whole | None = None
    end: tuple[Step, ...] = ()
    if virtual is not None and virtual.vip is not None and paths:
        whole = Whole(namespace=namespace, address=virtual.vip, port=port)
        end = (arrived_back(namespace, virtual.vip),)
    return Found(source=task.name, target=question.target, begin=steps, paths=paths, end=end, whole=whole)


def split(target: str) -> tuple[str, int]:
    """`web:80`, `10.0.1.2:80`, `[fd00::1]:80`, `:8080`, each with or without its port (0: none). Raises `Invalid`."""
    text = target.strip()
    try:
        return str(ipaddress.ip_address(text.strip("[]"))), 0
    except ValueError:
        pass
    host, colon, number = text.rpartition(":")
    if not colon:
        host, number = text, ""
    if number and not (number.isdecimal() and 0 < int(number) < 65536):
        raise Invalid(f"invalid port {number!r} in {target!r}: give a number from 1 to 65535")
    if not text or (colon and not number):
        raise Invalid(f"invalid target {target!r}: give a service, a task or an address, with :port if you like")
    return host.strip("[]"), int(number or 0)


def _task(parts: ViewParts, reference: str) -> Task:
    found = named((item.task for item in parts.tasks.values()), reference)
    if found is None:
        raise NotFound(f"no task or container {reference} runs on this node: ask the node where it runs, or a manager")
    return found


def named(tasks: Iterable[Task], reference: str) -> Task | None:
    """The living one that a name, id or beginning of one means. Raises `Invalid` when it may be several."""
    tasks = [task for task in tasks if not task.status.state.dead]
    exact = [t for t in tasks if reference in (t.id, t.name, t.container, t.status.container_id)]
    short = f"{reference}."
    found = exact or [
        t for t in tasks if t.id.startswith(reference) or t.name.startswith(short)
        or (t.status.container_id or "-").startswith(reference)
    ]  # fmt: skip
    if len(found) > 1:
        raise Invalid(f"{reference} may be any of {', '.join(sorted(t.name for t in found))}: say which")
    return found[0] if found else None


def _own(task: Task, network: NetworkItem, destination: Address) -> Address:
    for attachment in task.attachments:
        if attachment.network_id == network.id:
            for interface in attachment.addresses:
                if interface.version == destination.version:
                    return interface.ip
    raise Invalid(f"task {task.name} has no IPv{destination.version} address on network {network.name}")


Targets = list[tuple[NetworkItem, Address]]


def _targets(
    parts: ViewParts, plans: Plans, namespace: str, networks: list[NetworkItem], host: str
) -> tuple[tuple[Step, ...], Targets]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _named(parts, plans, namespace, networks, host)
    for network in networks:
        for service in parts.services.get(network.id, ()):
            if address in service.vips:
                backends = _backends(service, address)
                return (virtual(plans, namespace, address, backends),), [(network, b) for b in backends]
        if any(address in subnet.prefix for subnet in network.subnets):
            return (), [(network, address)]
    names = ", ".join(network.name for network in networks) or "none"
    raise Invalid(f"{address} is on no overlay network that the caller is on ({names}): trace addresses of those")


def _named(
    parts: ViewParts, plans: Plans, namespace: str, networks: list[NetworkItem], name: str
) -> tuple[tuple[Step, ...], Targets]:
    for network in networks:
        for service in parts.services.get(network.id, ()):
            called = (service.name, service.service, *service.aliases)
            if name in called or name.removeprefix(TASKS) in called:
                asked = service.name if name == service.service else name
                if not service.vips or name not in called:
                    found = [address for backend in service.backends for address in backend.addresses]
                    step = asked_name(namespace, asked, frozenset(found))
                    return (step,), [(network, address) for address in found]
                steps = [asked_name(namespace, asked, frozenset(service.vips))]
                steps += [virtual(plans, namespace, vip, _backends(service, vip)) for vip in service.vips]
                backends = [b for vip in service.vips for b in _backends(service, vip)]
                return tuple(steps), [(network, b) for b in backends]
        for names, addresses in _singles(parts, network):
            if name in names:
                step = asked_name(namespace, name, frozenset(addresses))
                return (step,), [(network, address) for address in addresses]
    shown = ", ".join(network.name for network in networks) or "none"
    raise NotFound(f"nobody is called {name} on the networks of the caller ({shown})")


def _singles(parts: ViewParts, network: NetworkItem) -> Iterator[tuple[tuple[str, ...], tuple[Address, ...]]]:
    """Tasks and plain containers by their own names."""
    for service in parts.services.get(network.id, ()):
        yield from ((backend.names, backend.addresses) for backend in service.backends)
    yield from ((item.names, item.addresses) for item in parts.endpoints.get(network.id, ()))


def _backends(service: ServiceItem, vip: Address) -> tuple[Address, ...]:
    return tuple(a for b in service.backends if b.weight for a in b.addresses if a.version == vip.version)


def _of_port(
    parts: ViewParts, plans: Plans, question: Question, host: str, port: int, vtep: Address, own: Collection[Address]
) -> Found:
    protocol, sender = question.protocol, question.sender
    if protocol == "icmp":
        raise Invalid("ports are published for tcp and udp: a trace from outside cannot be of icmp")
    if not port:
        raise Invalid("without a task to begin at, give a published port: :8080 or ADDRESS:8080")
    if host and not _is_ours(host, own):
        raise Invalid(f"{host} is no address of this node: ask the node that has it, or write :{port}")
    around = (entered(),) if sender is not None else ()
    after = (left(),) if sender is not None else ()
    whole = Whole(namespace=HOST, address=_asked(host, vtep), port=port)
    item = next((p for p in parts.publishes if (p.protocol, p.port) == (protocol, port)), None)
    if item is None:
        alone = hosted(plans, protocol, port, whole.address.version)
        if alone is None:
            raise NotFound(
                f"no service publishes port {port}/{protocol} in ingress mode, and nothing here in host mode"
            )
        return Found(
            source="outside", target=f"{host}:{port} (host mode)", begin=(*around, alone[0]), paths=(), whole=whole,
            end=(*back_out(mesh=False), *after), hosted=alone[1],
        )  # fmt: skip
    backends = tuple(address for b in item.backends if b.weight for address in b.addresses)
    ingress = next((n for n in parts.networks.values() if n.ingress and n.own), None)
    paths = []
    if ingress is not None and ingress.own is not None and overlay_namespace(ingress.id) in plans:
        own_there = {interface.version: interface.ip for interface in ingress.own.addresses}
        for address in backends:
            if address.version in own_there:
                leg = Leg(
                    network=ingress.id, source=own_there[address.version], destination=address, peer=vtep,
                    protocol=protocol, port=item.inside, mesh=True,
                )  # fmt: skip
                paths.append(Path(namespace=INGRESS_SANDBOX, leg=leg))
    begin = (*around, *published(plans, protocol, port, backends))
    return Found(
        source="outside", target=f"{host}:{port} ({item.service_name})", begin=begin, paths=tuple(paths),
        end=(*back_out(mesh=True), *after), whole=whole if paths else None,
    )  # fmt: skip


def _asked(host: str, vtep: Address) -> Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return vtep


def _is_ours(host: str, own: Collection[Address]) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host) in own
    except ValueError:
        return False
