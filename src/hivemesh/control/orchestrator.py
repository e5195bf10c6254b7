"""Which tasks should be: replicas in slots, replaced when they end, move or grow old.

One pass over a transaction. A slot is the numbered place of a replica; its tasks come and go, and at most one of them
is wanted at a time. Everything is read off the tasks themselves, so a pass may be repeated or lost:

- the *latest* task of a slot speaks for it; one that ended for good (restart policy) stays as its record;
- a replacement is made at once with desired READY, so that its node pulls the image meanwhile, and becomes RUNNING
  when its delay is over and the task before it has stopped.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from hivemesh.control import constraints
from hivemesh.model.ids import TaskID
from hivemesh.model.node import Node
from hivemesh.model.service import Service, UpdateConfig
from hivemesh.model.task import Task, TaskState, TaskStatus
from hivemesh.store.tables import Transaction

NewId = Callable[[], str]
SECOND = 1_000_000_000


def orchestrate(tx: Transaction, now: float, new_id: NewId) -> float | None:
    """Make, replace and retire tasks. Returns the time of the next thing to do, if one is known.

    Plain containers' tasks are made and ended by their nodes; here they only go with the node or the container.
    """
    for task in list(tx.all(Task)):
        settled = _settle(tx, task, now)
        if settled.desired < TaskState.REMOVE and not _is_owned(tx, settled):
            settled = msgspec.structs.replace(settled, desired=TaskState.REMOVE)
        if settled is not task:
            tx.put(settled)
    passes = [_Pass(tx, service, now, new_id) for service in tx.all(Service)]
    wakes = [wake for each in passes if (wake := each.run()) is not None]
    return min(wakes, default=None)


def _is_owned(tx: Transaction, task: Task) -> bool:
    """Somebody wants it: its service, or the plain container whose place on the network it is, while that lives."""
    if task.attached:
        return not task.status.state.dead
    return tx.get(Service, task.service_id) is not None


def _settle(tx: Transaction, task: Task, now: float) -> Task:
    """What no agent will ever report: the end of a task that has no node, or none any more."""
    if task.status.state.dead:
        return task
    if task.node_id is None:
        if task.desired <= TaskState.RUNNING:
            return task
        status = TaskStatus(timestamp=now, state=TaskState.SHUTDOWN, message="shutdown before it had a node")
    elif tx.get(Node, task.node_id) is None:
        status = msgspec.structs.replace(
            task.status, timestamp=now, state=TaskState.ORPHANED, message="orphaned", err="the node was removed"
        )
    else:
        return task
    return msgspec.structs.replace(task, status=status, updated=now)


@dataclass
class _Slot:
    number: int
    tasks: list[Task]

    @property
    def latest(self) -> Task:
        if len(self.tasks) == 1:
            return self.tasks[0]
        return max(
            self.tasks, key=lambda task: (task.created, task.desired <= TaskState.RUNNING, task.spec_version, task.id)
        )


class _Pass:
    """One service."""

    def __init__(self, tx: Transaction, service: Service, now: float, new_id: NewId) -> None:
        self._tx = tx
        self._service = service
        self._now = now
        self._new_id = new_id
        self._wake: float | None = None

    def run(self) -> float | None:
        slots: dict[int, _Slot] = {}
        for task in self._tx.tasks_of(self._service.id):
            if task.desired < TaskState.REMOVE:
                slots.setdefault(task.slot, _Slot(task.slot, [])).tasks.append(task)
        kept = self._scale(slots)
        outdated = []
        updating = 0
        for slot in kept:
            latest = slot.latest
            for task in slot.tasks:
                if task.id != latest.id and task.desired <= TaskState.RUNNING:
                    self._tx.put(self._stopped(task))
            if latest.status.state.dead:
                updating += self._ended(slot)
            elif latest.desired > TaskState.RUNNING:
                continue  # on its way out with no successor yet: judged when it has ended
            elif self._lost(latest) or self._unfit(latest):
                delay = self._delay if self._is_down(latest) else 0.0
                self._replace(latest, delay)
                updating += 1
            elif self._is_outdated(latest):
                outdated.append(latest)
            else:
                updating += self._is_starting(latest)
                self._promote(slot)
        self._roll(outdated, updating)
        return self._wake

    # --- how many

    def _scale(self, slots: dict[int, _Slot]) -> list[_Slot]:
        wanted = self._service.spec.replicas
        number = 0
        while len(slots) < wanted:
            number += 1
            if number not in slots:
                slots[number] = _Slot(number, [self._create(number, TaskState.RUNNING)])
        if len(slots) == wanted:  # nearly always
            return sorted(slots.values(), key=lambda slot: slot.number)
        ordered = _by_worth(list(slots.values()))
        for slot in ordered[wanted:]:
            for task in slot.tasks:
                self._tx.put(msgspec.structs.replace(task, desired=TaskState.REMOVE, updated=self._now))
        return sorted(ordered[:wanted], key=lambda slot: slot.number)

    def _create(self, slot: int, desired: TaskState, start_after: float = 0.0) -> Task:
        service = self._service
        return self._tx.put(
            Task(
                id=TaskID(self._new_id()),
                service_id=service.id,
                service_name=service.spec.name,
                slot=slot,
                spec=service.spec.task_template,
                spec_version=service.spec_version,
                created=self._now,
                updated=self._now,
                desired=desired,
                status=TaskStatus(timestamp=self._now),
                start_after=start_after,
            )
        )

    # --- restarts

    @property
    def _delay(self) -> float:
        return self._service.spec.task_template.restart_policy.delay / SECOND

    def _ended(self, slot: _Slot) -> bool:
        """Whether a successor starts."""
        latest = slot.latest
        if latest.spec_version != self._service.spec_version:
            self._replace(latest, 0.0)
        elif latest.start_after > self._now:  # it ended while it got ready: its successor waits for that turn
            self._wake_at(latest.start_after)
        elif self._should_restart(slot):
            self._replace(latest, self._delay)
        else:
            self._tx.put(self._stopped(latest))
            return False
        return True

    def _should_restart(self, slot: _Slot) -> bool:
        latest = slot.latest
        policy = latest.spec.restart_policy
        finished = latest.status.state == TaskState.COMPLETE
        orphaned = latest.status.state == TaskState.ORPHANED  # not its own fault
        if not orphaned and (policy.condition == "none" or (policy.condition == "on-failure" and finished)):
            return False
        if not policy.max_attempts or orphaned:
            return True
        since = latest.status.timestamp - policy.window / SECOND if policy.window else 0.0
        ended = [
            task
            for task in slot.tasks
            if task.spec_version == latest.spec_version
            and task.status.state in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)
            and task.status.timestamp >= since
        ]
        return len(ended) <= policy.max_attempts

    def _replace(self, old: Task, delay: float) -> None:
        """The old one goes, its successor waits for its turn."""
        stopped = self._tx.put(self._stopped(old))
        if delay == 0.0 and self._is_gone(stopped):
            self._create(old.slot, TaskState.RUNNING)
            return
        self._create(old.slot, TaskState.READY, self._now + delay)
        self._wake_at(self._now + delay)

    def _stopped(self, task: Task) -> Task:
        if task.desired > TaskState.RUNNING:
            return task
        stopped = msgspec.structs.replace(task, desired=TaskState.SHUTDOWN, updated=self._now)
        return _settle(self._tx, stopped, self._now)

    def _promote(self, slot: _Slot) -> None:
        latest = slot.latest
        if latest.desired != TaskState.READY:
            return
        if latest.start_after > self._now:
            self._wake_at(latest.start_after)
        elif all(self._is_gone(task) for task in slot.tasks if task.id != latest.id):
            self._tx.put(msgspec.structs.replace(latest, desired=TaskState.RUNNING, updated=self._now))

    def _is_gone(self, task: Task) -> bool:
        """Nothing of it runs, or nobody can tell."""
        return task.status.state.dead or task.node_id is None or self._is_down(task)

    # --- nodes

    def _is_down(self, task: Task) -> bool:
        node = self._tx.get(Node, task.node_id) if task.node_id else None
        return task.node_id is not None and (node is None or node.state == "down")

    def _lost(self, task: Task) -> bool:
        node = self._tx.get(Node, task.node_id) if task.node_id else None
        return self._is_down(task) or (node is not None and node.spec.availability == "drain")

    def _unfit(self, task: Task) -> bool:
        """The node no longer meets the constraints, as the service has them now."""
        node = self._tx.get(Node, task.node_id) if task.node_id else None
        return node is not None and not constraints.accepts(
            self._service.spec.task_template.placement.constraints, node
        )

    # --- updates

    def _is_outdated(self, task: Task) -> bool:
        if task.spec_version != self._service.spec_version:
            return True
        moved = task.spec.placement != self._service.spec.task_template.placement
        return moved and task.node_id is None  # it would be placed by the old rules

    def _is_starting(self, task: Task) -> bool:
        delay = (self._service.spec.update_config or UpdateConfig()).delay / SECOND
        if task.status.state < TaskState.RUNNING:
            return True
        settled = task.status.timestamp + delay
        if delay and self._service.updated <= task.created and settled > self._now:
            self._wake_at(settled)
            return True
        return False

    def _roll(self, outdated: list[Task], updating: int) -> None:
        """Replace outdated tasks, so many at a time; those that serve nobody need not wait."""
        parallelism = (self._service.spec.update_config or UpdateConfig()).parallelism
        for task in sorted(outdated, key=lambda task: task.status.state == TaskState.RUNNING):
            if task.status.state == TaskState.RUNNING:
                if parallelism and updating >= parallelism:
                    return
                updating += 1
            self._replace(task, 0.0)

    def _wake_at(self, when: float) -> None:
        self._wake = when if self._wake is None else min(self._wake, when)


def _by_worth(slots: list[_Slot]) -> list[_Slot]:
    """Running ones first, then those with a node, then by how many of the same node come before: the fullest nodes
    lose first.
    """

    def progress(slot: _Slot) -> tuple[bool, bool]:
        return not slot.latest.serving, slot.latest.node_id is None

    copies: Counter[str | None] = Counter()
    ranked = []
    for slot in sorted(slots, key=lambda slot: (progress(slot), slot.number)):
        ranked.append(((progress(slot), copies[slot.latest.node_id], slot.number), slot))
        copies[slot.latest.node_id] += 1
    return [slot for _, slot in sorted(ranked, key=lambda entry: entry[0])]
