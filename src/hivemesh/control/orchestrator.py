"""Which tasks should be: of a replicated service in numbered slots, of a global one on every node that fits.

One pass over a transaction. A slot's tasks come and go, and at most one of them is wanted at a time (two while an
update starts the new one first). Everything is read off the tasks themselves, so a pass may be repeated or lost:

- the *latest* task of a slot speaks for it; one that ended for good (restart policy) stays as its record;
- a replacement is made at once with desired READY, so that its node pulls the image meanwhile, and becomes RUNNING
  when its delay is over and the task before it has stopped.
"""

from collections import Counter

import msgspec

from hivemesh.control import jobs, updater
from hivemesh.control.slots import SECOND, NewId, ServiceTasks, Slot, settle
from hivemesh.model.node import Node
from hivemesh.model.service import Service
from hivemesh.model.task import Task, TaskState
from hivemesh.store.tables import Transaction


def orchestrate(tx: Transaction, now: float, new_id: NewId) -> float | None:
    """Make, replace and retire tasks. Returns the time of the next thing to do, if one is known.

    Plain containers' tasks are made and ended by their nodes; here they only go with the node or the container.
    """
    for task in list(tx.all(Task)):
        settled = settle(tx, task, now)
        if settled.desired < TaskState.REMOVE and not _is_owned(tx, settled):
            settled = msgspec.structs.replace(settled, desired=TaskState.REMOVE)
        if settled is not task:
            tx.put(settled)
    wakes = [node.lost_at for node in tx.all(Node) if node.lost_at > now]
    for service in list(tx.all(Service)):
        tasks = ServiceTasks(tx, service, now, new_id)
        if service.spec.is_job:
            jobs.run(tasks)
        else:
            _Pass(tasks).run()
        if tasks.wake is not None:
            wakes.append(tasks.wake)
    return min(wakes, default=None)


def _is_owned(tx: Transaction, task: Task) -> bool:
    """Somebody wants it: its service, or the plain container whose place on the network it is, while that lives."""
    if task.attached:
        return not task.status.state.dead
    return tx.get(Service, task.service_id) is not None


class _Pass:
    """One service that is to run for ever."""

    def __init__(self, tasks: ServiceTasks) -> None:
        self._tasks = tasks
        self._now = tasks.now

    @property
    def _service(self) -> Service:
        return self._tasks.service

    def run(self) -> None:
        slots = self._tasks.slots()
        self._judge(slots)
        kept = self._cover(slots) if self._service.spec.is_global else self._scale(slots)
        outdated: list[tuple[Slot, Task]] = []
        busy = 0
        for slot in kept:
            latest = self._latest(slot)
            before = [task for task in slot.tasks if task.id != latest.id and not self._stays(task, latest)]
            for task in before:
                self._tasks.stop(task)
            if latest.status.state.dead:
                busy += self._ended(slot, latest) and not self._has_failed(slot)
            elif latest.desired > TaskState.RUNNING:
                continue  # on its way out with no successor yet: judged when it has ended
            elif self._tasks.is_unfit(latest) or (not self._service.spec.is_global and self._tasks.is_lost(latest)):
                self._tasks.replace(slot, latest, self._tasks.delay if self._tasks.is_down(latest) else 0.0)
                busy += 1
            elif self._is_outdated(latest):
                outdated.append((slot, latest))
            else:
                busy += self._is_settling(latest) and not self._has_failed(slot)
                self._tasks.promote(latest, before)
        self._roll(outdated, busy)

    def _latest(self, slot: Slot) -> Task:
        """The youngest; but one that serves, and is as it should be, before one that only comes to replace it."""
        if len(slot.tasks) == 1:
            return slot.tasks[0]
        return max(
            slot.tasks,
            key=lambda task: (
                task.serving and not self._is_outdated(task),
                task.created,
                task.desired <= TaskState.RUNNING,
                task.spec_version,
                task.id,
            ),
        )

    # --- how many

    def _scale(self, slots: dict[tuple[int, str], Slot]) -> list[Slot]:
        wanted = self._service.spec.replicas
        number = 0
        while len(slots) < wanted:
            number += 1
            slot = Slot(number, None)
            if slot.key not in slots:
                slot.tasks.append(self._tasks.create(slot))
                slots[slot.key] = slot
        if len(slots) == wanted:  # nearly always
            return sorted(slots.values(), key=lambda slot: slot.number)
        ordered = self._by_worth(list(slots.values()))
        for slot in ordered[wanted:]:
            self._tasks.remove(slot.tasks)
        return sorted(ordered[:wanted], key=lambda slot: slot.number)

    def _by_worth(self, slots: list[Slot]) -> list[Slot]:
        """Running ones first, then those with a node, then by how many of the same node come before: the fullest nodes
        lose first.
        """
        latest = {slot.number: self._latest(slot) for slot in slots}

        def progress(slot: Slot) -> tuple[bool, bool]:
            return not any(task.serving for task in slot.tasks), latest[slot.number].node_id is None

        copies: Counter[str | None] = Counter()
        ranked = []
        for slot in sorted(slots, key=lambda slot: (progress(slot), slot.number)):
            node = latest[slot.number].node_id
            ranked.append(((progress(slot), copies[node], slot.number), slot))
            copies[node] += 1
        return [slot for _, slot in sorted(ranked, key=lambda entry: entry[0])]

    def _cover(self, slots: dict[tuple[int, str], Slot]) -> list[Slot]:
        """Every node that fits. What runs on a paused node, or on one that does not answer, is left as it is."""
        kept = []
        for node in sorted(self._tasks.tx.all(Node), key=lambda node: (node.created, node.id)):
            slot = slots.get((0, node.id)) or Slot(0, node.id)
            if node.spec.availability == "drain" or not self._tasks.accepts(node):
                for task in slot.tasks:
                    self._tasks.stop(task)
                continue
            open_ = node.state == "ready" and node.spec.availability == "active"
            # It was stopped while the node did not fit, and has not ended by itself
            empty = not slot.tasks or self._latest(slot).stopped
            if empty and not any(task.desired <= TaskState.RUNNING for task in slot.tasks):
                if not open_:
                    continue
                slot.tasks.append(self._tasks.create(slot))
            if node.state != "down":
                kept.append(slot)
        return kept

    # --- restarts

    def _ended(self, slot: Slot, latest: Task) -> bool:
        """Whether a successor starts."""
        if latest.spec_version != self._service.spec_version and updater.is_rolling(self._service):
            self._tasks.replace(slot, latest, 0.0)
        elif self._tasks.waits_for_turn(latest):
            pass  # it ended while it got ready: its successor waits for that turn
        elif self._tasks.should_restart(slot, latest):
            self._tasks.replace(slot, latest, self._tasks.delay)
        else:
            self._tasks.stop(latest)
            return False
        return True

    # --- updates

    def _judge(self, slots: dict[tuple[int, str], Slot]) -> None:
        tasks = [task for slot in slots.values() for task in slot.tasks]
        self._put(updater.judged(self._service, tasks, len(slots), self._now))

    def _put(self, service: Service) -> None:
        if service is not self._service:
            self._tasks.service = self._tasks.tx.put(service)

    def _is_outdated(self, task: Task) -> bool:
        if task.spec_version != self._service.spec_version:
            return True
        if self._service.spec.is_global or task.spec.placement == self._service.spec.task_template.placement:
            return False
        return not task.placed or self._tasks.is_misplaced(task)  # else it would be placed by the old rules

    def _stays(self, task: Task, latest: Task) -> bool:
        """Start-first: what serves goes on until its successor does, which may be outdated before it does."""
        return (
            task.serving
            and updater.config_of(self._service).order == "start-first"
            and latest.status.state != TaskState.RUNNING
            and not self._tasks.is_lost(task)
        )

    def _has_failed(self, slot: Slot) -> bool:
        return any(updater.has_failed(self._service, task) for task in slot.tasks)

    def _is_settling(self, task: Task) -> bool:
        """It is not there yet, or the pause after it is not over."""
        if task.status.state < TaskState.RUNNING:
            return True
        pause = updater.config_of(self._service).delay / SECOND
        return updater.belongs(self._service, task) and self._tasks.waits(task.started + pause, pause)

    def _roll(self, outdated: list[tuple[Slot, Task]], busy: int) -> None:
        """Replace outdated tasks, so many at a time; those that serve nobody need not wait."""
        if not updater.is_rolling(self._service):
            return
        if outdated:
            self._put(updater.begun(self._service, self._now))
        elif not busy:
            self._finish()
        config = updater.config_of(self._service)
        for slot, task in sorted(outdated, key=lambda pair: pair[1].status.state == TaskState.RUNNING):
            serving = task.status.state == TaskState.RUNNING
            if serving:
                if config.parallelism and busy >= config.parallelism:
                    return
                busy += 1
            if serving and config.order == "start-first":
                self._tasks.create(slot)
            else:
                self._tasks.replace(slot, task, 0.0)

    def _finish(self) -> None:
        """An update is over when its last task has lasted for a while."""
        if self._service.update_status is None:
            return
        over = updater.settled_at(self._service, self._tasks.tx.tasks_of(self._service.id))
        if not self._tasks.waits(over, updater.config_of(self._service).monitor / SECOND):
            self._put(updater.completed(self._service, self._now))
