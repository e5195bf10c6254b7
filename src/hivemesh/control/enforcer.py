"""Nodes change under their tasks: which tasks are on the wrong node now. One pass over a transaction.

Only a node's change counts here: another label, role or address, less memory, a GPU taken out. When it is the service
that changed, its update moves the tasks, as many at a time as it may. Such a task is *evicted*: marked, no more.
Whoever made it stops and replaces it as on a drained node, so that it serves until its connections go elsewhere; its
end is then shown as `REJECTED`, in Swarm's words.

A paused node is left as it is, a drained one is emptied anyway, and of one that is down nothing new is known.
"""

from collections.abc import Iterable

import msgspec

from hivemesh.control import constraints
from hivemesh.control.stock import Stock
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.model.service import Reservations, Service
from hivemesh.model.task import Task
from hivemesh.store.tables import Transaction

_NOTHING = Reservations()


def enforce(tx: Transaction) -> None:
    """Mark the tasks whose constraints or reservations their nodes no longer meet."""
    by_node: dict[NodeID, list[Task]] = {}
    for task in tx.all(Task):
        bound = task.spec.placement.constraints or task.spec.resources.reservations
        if bound and task.placed and task.wanted and not task.evicted and task.node_id is not None:
            by_node.setdefault(task.node_id, []).append(task)
    for identifier, tasks in by_node.items():
        node = tx.get(Node, identifier)
        if node is not None and node.spec.availability == "active" and node.state != "down":
            for task in _misfits(tx, node, tasks):
                tx.put(msgspec.structs.replace(task, evicted=True))


def _misfits(tx: Transaction, node: Node, tasks: Iterable[Task]) -> Iterable[Task]:
    """Where there is no longer enough for all, the youngest go."""
    cpus, memory, stock = node.description.nano_cpus, node.description.memory_bytes, Stock(node.description.generic)
    for task in sorted(tasks, key=lambda task: (task.created, task.id)):
        asked = task.spec.resources.reservations or _NOTHING
        enough = asked.nano_cpus <= max(cpus, 0) and asked.memory_bytes <= max(memory, 0) and stock.holds(task.generic)
        if enough and _is_welcome(tx, node, task):
            cpus, memory = cpus - asked.nano_cpus, memory - asked.memory_bytes
            stock.take(task.generic)
        else:
            yield task


def _is_welcome(tx: Transaction, node: Node, task: Task) -> bool:
    """By the rules the task was placed by, or by those its service has now."""
    if constraints.accepts(task.spec.placement.constraints, node):
        return True
    service = tx.get(Service, task.service_id)
    return service is not None and constraints.accepts(service.spec.task_template.placement.constraints, node)
