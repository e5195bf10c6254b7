"""One service's tasks by the places they fill, and what the orchestrators do to them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from hivemesh.control import constraints
from hivemesh.model.cluster import Cluster
from hivemesh.model.container import LogDriver
from hivemesh.model.ids import NodeID, TaskID
from hivemesh.model.node import Node
from hivemesh.model.service import Service
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.store.tables import Transaction

NewId = Callable[[], str]
SECOND = 1_000_000_000
TICK = 0.001
"""Seconds that a task is younger than the one before it, at least."""
CLOCKS_APART = 2.0
"""Seconds that two machines' clocks may differ by and still be called right."""


@dataclass
class Slot:
    """A numbered place, or of a global service a node. Its tasks come and go."""

    number: int
    node: NodeID | None
    tasks: list[Task] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, str]:
        return self.number, self.node or ""


class ServiceTasks:
    """The tasks of one service within a transaction."""

    def __init__(self, tx: Transaction, service: Service, now: float, new_id: NewId) -> None:
        self.tx = tx
        self.service = service
        self.now = now
        self.wake: float | None = None
        self._new_id = new_id

    def slots(self) -> dict[tuple[int, str], Slot]:
        """All places that have tasks which are not to be removed, by their keys."""
        found: dict[tuple[int, str], Slot] = {}
        by_node = self.service.spec.is_global
        for task in self.tx.tasks_of(self.service.id):
            if task.desired < TaskState.REMOVE:
                slot = Slot(task.slot, task.node_id if by_node else None)
                found.setdefault(slot.key, slot).tasks.append(task)
        return found

    def create(self, slot: Slot, desired: TaskState = TaskState.RUNNING, start_after: float = 0.0) -> Task:
        service = self.service
        return self.tx.put(
            Task(
                id=TaskID(self._new_id()),
                service_id=service.id,
                service_name=service.spec.name,
                slot=slot.number,
                node_id=slot.node,
                spec=service.spec.task_template,
                log_driver=self._default_log_driver(),
                spec_version=service.spec_version,
                iteration=service.iteration,
                created=self._youngest_of(slot),
                updated=self.now,
                desired=desired,
                status=TaskStatus(timestamp=self.now),
                start_after=start_after,
            )
        )

    def _youngest_of(self, slot: Slot) -> float:
        """When it was made: after all that was there, though it may have been made by the clock of another leader."""
        update = self.service.update_status
        before = [task.created + TICK for task in slot.tasks] + [update.started if update is not None else 0.0]
        return max(self.now, *before)

    def _default_log_driver(self) -> LogDriver | None:
        if self.service.spec.task_template.log_driver is not None:
            return None
        return next((cluster.spec.task_defaults.log_driver for cluster in self.tx.all(Cluster)), None)

    def replace(self, slot: Slot, old: Task, delay: float) -> None:
        """The old one goes, its successor waits for its turn."""
        stopped = self.stop(old)
        if delay == 0.0 and self.is_gone(stopped):
            self.create(slot)
            return
        self.create(slot, TaskState.READY, self.now + delay)
        self.wake_at(self.now + delay)

    def stop(self, task: Task) -> Task:
        if task.desired > TaskState.RUNNING:
            return task
        stopped = msgspec.structs.replace(task, desired=TaskState.SHUTDOWN, updated=self.now)
        return self.tx.put(settle(self.tx, stopped, self.now))

    def remove(self, tasks: Iterable[Task]) -> None:
        """Without a trace in the history."""
        for task in tasks:
            self.tx.put(msgspec.structs.replace(task, desired=TaskState.REMOVE, updated=self.now))

    def promote(self, task: Task, others: Iterable[Task]) -> None:
        """Its turn comes when its delay is over and the tasks before it are gone."""
        if task.desired != TaskState.READY:
            return
        if not self.waits_for_turn(task) and all(self.is_gone(other) for other in others):
            self.tx.put(msgspec.structs.replace(task, desired=TaskState.RUNNING, updated=self.now))

    def waits_for_turn(self, task: Task) -> bool:
        """Whether the delay before it is not over."""
        return self.waits(task.start_after, task.spec.restart_policy.delay / SECOND)

    def waits(self, until: float, longest: float) -> bool:
        """Whether that moment is to come, at most `longest` seconds from now; then this is looked at again.

        One further away was written by another clock than ours, of an earlier leader or of a node, or ours was set
        back: nobody waits for that.
        """
        if not self.now < until <= self.now + longest + CLOCKS_APART:
            return False
        self.wake_at(until)
        return True

    @property
    def delay(self) -> float:
        """Seconds before a place is filled again."""
        return self.service.spec.task_template.restart_policy.delay / SECOND

    def should_restart(self, slot: Slot, latest: Task) -> bool:
        policy = latest.spec.restart_policy
        condition = policy.condition
        if condition == "any" and self.service.spec.is_job:
            condition = "on-failure"
        finished = latest.status.state == TaskState.COMPLETE
        orphaned = latest.status.state == TaskState.ORPHANED  # not its own fault
        if not orphaned and (condition == "none" or (condition == "on-failure" and finished)):
            return False
        if not policy.max_attempts or orphaned:
            return True
        since = latest.status.timestamp - policy.window / SECOND if policy.window else 0.0
        ended = [
            task
            for task in slot.tasks
            if task.spec_version == latest.spec_version and task.ended and task.status.timestamp >= since
        ]
        return len(ended) <= policy.max_attempts

    def is_gone(self, task: Task) -> bool:
        """Nothing of it runs, or nobody can tell."""
        return task.status.state.dead or not task.placed or self.is_down(task)

    def is_down(self, task: Task) -> bool:
        node = self.node_of(task)
        return task.node_id is not None and (node is None or node.state == "down")

    def is_lost(self, task: Task) -> bool:
        """Its node is down, or is being emptied."""
        node = self.node_of(task)
        return self.is_down(task) or (node is not None and node.spec.availability == "drain")

    def is_unfit(self, task: Task) -> bool:
        """Its node changed, and is the wrong one now: see `enforcer.py`."""
        return task.evicted

    def is_misplaced(self, task: Task) -> bool:
        """The service changed, and does not want its node any more."""
        node = self.node_of(task)
        return node is not None and not self.accepts(node)

    def accepts(self, node: Node) -> bool:
        return constraints.accepts(self.service.spec.task_template.placement.constraints, node)

    def node_of(self, task: Task) -> Node | None:
        return self.tx.get(Node, task.node_id) if task.node_id else None

    def wake_at(self, when: float) -> None:
        self.wake = when if self.wake is None else min(self.wake, when)


def settle(tx: Transaction, task: Task, now: float) -> Task:
    """What no agent will ever report: the end of a task that no node was told of, or whose node is gone.

    Also of one whose node has been down for so long that nobody waits any more; a plain container's place is kept, for
    nobody else could be it.
    """
    if task.status.state.dead:
        return task
    node = tx.get(Node, task.node_id) if task.node_id is not None else None
    if task.node_id is not None and node is None:
        status = _orphaned(task, now, "the node was removed")
    elif node is not None and not task.attached and 0.0 < node.lost_at <= now:
        status = _orphaned(task, now, f"the node is down: {node.message}" if node.message else "the node is down")
    elif task.placed or task.desired <= TaskState.RUNNING:
        return task
    else:
        status = TaskStatus(timestamp=now, state=TaskState.SHUTDOWN, message="shutdown before it had a node")
    return msgspec.structs.replace(task, status=status, updated=now)


def _orphaned(task: Task, now: float, why: str) -> TaskStatus:
    return msgspec.structs.replace(task.status, timestamp=now, state=TaskState.ORPHANED, message="orphaned", err=why)
