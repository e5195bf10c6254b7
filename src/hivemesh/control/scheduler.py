"""Which node runs a task: filters in Docker's order, then spread. One pass over a transaction.

Spread goes down the tree of the service's preferences (zones, then the racks of a zone): of the branches that have a
fitting node, into the one with the fewest tasks of the service, all its nodes counted. Nodes that lack the label are a
branch of their own. Inside the last branch the emptiest node wins.
"""

from collections import Counter
from collections.abc import Callable

import msgspec

from hivemesh.control import constraints
from hivemesh.control.balance import balance_of
from hivemesh.control.stock import Stock
from hivemesh.model.errors import Invalid
from hivemesh.model.node import Node
from hivemesh.model.service import Reservations, Service
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.store.tables import Transaction

ASSIGNED_MESSAGE = "scheduler assigned task to node"
RECENT = 300.0
"""Seconds during which failures of a service on a node count against the node."""
TOO_MANY_FAILURES = 5
_NOTHING = Reservations()
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def schedule(tx: Transaction, now: float) -> None:
    """Assign tasks that wait for a node; one that finds none gets the explanation in `status.err`."""
    waiting = [
        task for task in tx.all(Task) if task.status.state == TaskState.PENDING and task.desired <= TaskState.RUNNING
    ]
    if not waiting:
        return
    sites = [_Site(node, tx.tasks_on(node.id), now) for node in tx.all(Node)]
    for task in sorted(waiting, key=lambda task: (task.created, task.service_id, task.slot)):
        # A global service's task is for one node
        here = [site for site in sites if task.node_id in (None, site.node.id)]
        candidates = _fitting(here, task, _balancer(tx.get(Service, task.service_id)))
        if isinstance(candidates, str):
            status = msgspec.structs.replace(task.status, err=candidates)
            tx.put(msgspec.structs.replace(task, status=status))
            continue
        site = _spread(task, candidates, here)
        assigned = msgspec.structs.replace(
            task,
            node_id=site.node.id,
            generic=site.stock.choose(_reserved(task).generic_resources),
            status=TaskStatus(timestamp=now, state=TaskState.ASSIGNED, message=ASSIGNED_MESSAGE),
            updated=now,
        )
        tx.put(assigned)
        site.add(assigned)


class _Site:
    """A node and what is on it."""

    def __init__(self, node: Node, tasks: list[Task], now: float) -> None:
        self.node = node
        self.total = 0
        self.of_service: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.host_ports = set(node.description.published)
        self.free_cpus = node.description.nano_cpus
        self.free_memory = node.description.memory_bytes
        self.stock = Stock(node.description.generic)
        for task in tasks:
            if not task.status.state.dead and task.placed:
                self.add(task)
            elif _has_failed(task) and task.status.timestamp > now - RECENT:
                self.failures[task.service_id] += 1

    def add(self, task: Task) -> None:
        self.host_ports |= _host_ports(task)
        reserved = _reserved(task)
        self.free_cpus -= reserved.nano_cpus
        self.free_memory -= reserved.memory_bytes
        self.stock.take(task.generic)
        if task.desired <= TaskState.RUNNING:  # one that is being replaced keeps its resources, not its place
            self.total += 1
            self.of_service[task.service_id] += 1

    def rank(self, task: Task) -> tuple[bool, int, int, str]:
        """Lowest first: spread over nodes that do not keep failing."""
        failing = self.failures[task.service_id] >= TOO_MANY_FAILURES
        return failing, self.of_service[task.service_id], self.total, self.node.id


def _spread(task: Task, fitting: list[_Site], everywhere: list[_Site]) -> _Site:
    """The best of the fitting sites. `everywhere` are all that were looked at: also where no further task fits, the
    tasks that are there count for their branch."""
    for preference in task.spec.placement.preferences:
        descriptor = preference.spread.spread_descriptor if preference.spread is not None else ""
        branches: dict[str, list[_Site]] = {}
        for site in fitting:
            branches.setdefault(constraints.attribute(descriptor, site.node) or "", []).append(site)
        around = [(constraints.attribute(descriptor, site.node) or "", site) for site in everywhere]
        tasks: Counter[str] = Counter()
        for value, site in around:
            tasks[value] += site.of_service[task.service_id]
        best = min(branches, key=lambda value: (tasks[value], min(site.rank(task) for site in branches[value])))
        fitting, everywhere = branches[best], [site for value, site in around if value == best]
    return min(fitting, key=lambda site: site.rank(task))


def _is_ready(site: _Site, task: Task) -> bool:
    return site.node.state == "ready" and site.node.spec.availability == "active"


def _has_resources(site: _Site, task: Task) -> bool:
    asked = _reserved(task)
    return (
        (not asked.nano_cpus or asked.nano_cpus <= site.free_cpus)
        and (not asked.memory_bytes or asked.memory_bytes <= site.free_memory)
        and (not asked.generic_resources or site.stock.has(asked.generic_resources))
    )


def _meets_constraints(site: _Site, task: Task) -> bool:
    return constraints.accepts(task.spec.placement.constraints, site.node)


def _is_platform(site: _Site, task: Task) -> bool:
    platforms = task.spec.placement.platforms
    description = site.node.description
    return not platforms or any(
        platform.os in ("", description.os)
        and (not platform.architecture or _machine(platform.architecture) == _machine(description.architecture))
        for platform in platforms
    )


def _has_host_ports(site: _Site, task: Task) -> bool:
    return not _host_ports(task) & site.host_ports


def _has_protocols(site: _Site, task: Task) -> bool:
    return all(port.protocol in site.node.description.protocols for port in task.ports)


def _below_maximum(site: _Site, task: Task) -> bool:
    maximum = task.spec.placement.max_replicas
    return not maximum or site.of_service[task.service_id] < maximum


FILTERS: tuple[tuple[Callable[[_Site, Task], bool], str], ...] = (
    (_is_ready, "{} not available for new tasks"),
    (_has_resources, "insufficient resources on {}"),
    (_meets_constraints, "scheduling constraints not satisfied on {}"),
    (_is_platform, "unsupported platform on {}"),
    (_has_host_ports, "host-mode port already in use on {}"),
    (_has_protocols, "no SCTP in the kernel (module sctp) of {}"),
    (_below_maximum, "max replicas per node limit exceed"),
)


NO_BALANCER = {"ipvs": "no IPVS in the kernel (module ip_vs) of {}", "nftables": "no nftables in the kernel of {}"}


def _balancer(service: Service | None) -> str:
    """What the service's labels ask for; "": whatever the node has."""
    try:
        return balance_of(service.spec.labels).engine if service is not None else ""
    except Invalid:  # from before labels were checked
        return ""


def _fitting(sites: list[_Site], task: Task, engine: str) -> list[_Site] | str:
    """The nodes that pass every filter, else the explanation in Docker's words. `engine` is the balancer that the
    service's labels ask for."""
    refusals: Counter[str] = Counter()
    fitting = []
    for site in sites:
        refused = next((text for accepts, text in FILTERS if not accepts(site, task)), None)
        if refused is None and engine and engine not in site.node.description.balancers:
            refused = NO_BALANCER[engine]
        if refused is None:
            fitting.append(site)
        else:
            refusals[refused] += 1
    if fitting:
        return fitting
    parts = [text.format("1 node" if count == 1 else f"{count} nodes") for text, count in refusals.most_common()]
    return f"no suitable node ({'; '.join(parts)})" if parts else "no suitable node"


def _host_ports(task: Task) -> set[tuple[str, int]]:
    return {
        (port.protocol, port.published_port)
        for port in (*task.ports, *task.status.ports)  # also those that the node chose
        if port.publish_mode == "host" and port.published_port
    }


def _reserved(task: Task) -> Reservations:
    return task.spec.resources.reservations or _NOTHING


def _has_failed(task: Task) -> bool:
    return task.ended and task.status.state != TaskState.COMPLETE


def _machine(architecture: str) -> str:
    return _MACHINES.get(architecture, architecture)
