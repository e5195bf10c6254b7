"""Connections as connection tracking shows them, with the names of the swarm. Pure."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from hivemesh.cnm.node import ViewParts
from hivemesh.dataplane.plan.names import INGRESS_SANDBOX, overlay_namespace, sandbox_namespace
from hivemesh.kernel.api import NamespacePlan
from hivemesh.kernel.flows import Tracked
from hivemesh.metrics.reading import networks_of
from hivemesh.model.addr import Address
from hivemesh.model.ids import TaskID
from hivemesh.model.task import Task
from hivemesh.wire.feed import End, Flow, Place, Verdict

_PROTOCOLS = {
    socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_SCTP: "sctp",
    socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_ICMPV6: "icmp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Who:
    service: str
    task: str = ""
    name: str = ""

    def at(self, address: Address, port: int) -> End:
        return End(address=str(address), port=port, service=self.service, task=self.task, name=self.name)


_NOBODY = _Who("")


def short_name(name: str, task: TaskID) -> str:
    """`web.1` of `web.1.<id>`."""
    return name.removesuffix(f".{task}")


def task_end(task: Task) -> _Who:
    return _Who("" if task.attached else task.service_name, task.id, short_name(task.name, task.id))


class Names:
    """Who is who on each network, as a view says; made anew for each view."""

    def __init__(self, parts: ViewParts, node: str) -> None:
        self._node = node
        self._by_network: dict[str, dict[Address, _Who]] = {}
        self._ports = {(item.protocol, item.inside): item for item in parts.publishes}
        self._sandboxes = {sandbox_namespace(task): task_end(item.task) for task, item in parts.tasks.items()}
        self._mesh: dict[Address, _Who] = {}
        named: dict[TaskID, str] = {task: short_name(item.task.name, task) for task, item in parts.tasks.items()}
        for network, items in parts.services.items():
            known = self._by_network.setdefault(overlay_namespace(network), {})
            for item in items:
                known.update({vip: _Who(item.name) for vip in item.vips})
                for backend in item.backends:
                    name = short_name(backend.names[0], backend.task) if backend.names else ""
                    named.setdefault(backend.task, name)
                    known.update({a: _Who(item.name, backend.task, name) for a in backend.addresses})
        for network, endpoints in parts.endpoints.items():
            known = self._by_network.setdefault(overlay_namespace(network), {})
            known.update({a: _Who("", name=e.names[0]) for e in endpoints for a in e.addresses if e.names})
        for item_ in parts.tasks.values():
            for attachment in item_.task.attachments:
                known = self._by_network.setdefault(overlay_namespace(attachment.network_id), {})
                known.update({interface.ip: task_end(item_.task) for interface in attachment.addresses})
        for publish in parts.publishes:
            for backend in publish.backends:
                who = _Who(publish.service_name, backend.task, named.get(backend.task, ""))
                self._mesh.update(dict.fromkeys(backend.addresses, who))

    def flow(self, namespace: str, plan: NamespacePlan, tracked: Tracked, at: float) -> Flow | None:
        """None for what is of no interest: within one sandbox, or seen where it begins already."""
        if tracked.source.is_loopback or tracked.destination.is_loopback or tracked.destination.is_multicast:
            return None
        if namespace == INGRESS_SANDBOX:
            return self._published(plan, tracked, at)
        return self._own(namespace, plan, tracked, at)

    def _published(self, plan: NamespacePlan, tracked: Tracked, at: float) -> Flow | None:
        protocol = protocol_of(tracked)
        item = self._ports.get((protocol, tracked.destination_port))
        own = {address.address.ip for address in plan.addresses}
        if item is None or tracked.destination not in own:
            return None
        target = End(address=str(tracked.destination), port=item.port, service=item.service_name)
        backend = None
        if tracked.translated:
            who = self._mesh.get(tracked.answers, _Who(item.service_name))
            backend = who.at(tracked.answers, tracked.answers_port)
        source = End(address=str(tracked.source), port=tracked.source_port)
        verdict: Verdict = "balanced" if backend is not None else "refused"
        return self._flow("ingress", protocol, source, target, verdict, backend, at)

    def _own(self, namespace: str, plan: NamespacePlan, tracked: Tracked, at: float) -> Flow | None:
        """What the sandbox begins."""
        own = {address.address.ip for address in plan.addresses}
        me = self._sandboxes.get(namespace, _NOBODY)
        networks = networks_of(plan)
        protocol = protocol_of(tracked)
        if tracked.source in own:
            source = me.at(tracked.source, tracked.source_port)
            target = self._who(networks, tracked.destination).at(tracked.destination, tracked.destination_port)
            backend = None
            if tracked.answers != tracked.destination:
                backend = self._who(networks, tracked.answers).at(tracked.answers, tracked.answers_port)
            return self._flow(
                "sandbox", protocol, source, target, "balanced" if backend is not None else "direct", backend, at
            )
        return None

    def in_host_mode(self, tracked: Tracked, tasks: Mapping[Address, Task], at: float) -> Flow | None:
        """Through a port in host mode, as the host saw it. `tasks` are those that such ports lead to, by address."""
        task = tasks.get(tracked.answers)
        if task is None or not tracked.translated:
            return None
        who = task_end(task)
        source = End(address=str(tracked.source), port=tracked.source_port)
        target = End(address=str(tracked.destination), port=tracked.destination_port, service=who.service)
        backend = who.at(tracked.answers, tracked.answers_port)
        return self._flow("host", protocol_of(tracked), source, target, "direct", backend, at)

    def _who(self, networks: set[str], address: Address) -> _Who:
        for network in networks:
            if (found := self._by_network.get(network, {}).get(address)) is not None:
                return found
        return _NOBODY

    def _flow(
        self,
        place: Place,
        protocol: str,
        source: End,
        target: End,
        verdict: Verdict,
        backend: End | None,
        at: float,
    ) -> Flow:
        return Flow(
            at=at, node=self._node, place=place, protocol=protocol, source=source, target=target, verdict=verdict,
            backend=backend,
        )  # fmt: skip


def protocol_of(tracked: Tracked) -> str:
    """By name, or its number."""
    return _PROTOCOLS.get(tracked.protocol, str(tracked.protocol))
