"""Jobs: tasks that run to their end, so many at a time until enough of them have completed, or once on each node.

A job's *iteration* counts how often it was started anew (by a change of its tasks); what earlier iterations left is
removed. A task that fails is tried again as its restart policy says, `any` meaning on failure. Slots begin at 0.
"""

from collections.abc import Iterable

from hivemesh.control.slots import ServiceTasks, Slot
from hivemesh.model.node import Node
from hivemesh.model.task import Task, TaskState


def run(tasks: ServiceTasks) -> None:
    """One pass."""
    earlier = [
        task
        for task in tasks.tx.tasks_of(tasks.service.id)
        if task.iteration != tasks.service.iteration and task.desired < TaskState.REMOVE
    ]
    tasks.remove(earlier)
    slots = tasks.slots()
    if tasks.service.spec.is_global:
        _cover(tasks, slots)
    else:
        _fill(tasks, slots)


def _fill(tasks: ServiceTasks, slots: dict[tuple[int, str], Slot]) -> None:
    at_once, total = tasks.service.spec.completions
    for slot in slots.values():
        if slot.number >= total:
            tasks.remove(slot.tasks)
    active = 0
    free = []
    for number in range(total):
        slot = slots.get((number, "")) or Slot(number, None)
        if not slot.tasks:
            free.append(slot)
        elif not _is_done(slot.tasks):
            active += _go_on(tasks, slot)
    for slot in free[: max(0, at_once - active)]:
        tasks.create(slot)


def _cover(tasks: ServiceTasks, slots: dict[tuple[int, str], Slot]) -> None:
    for node in sorted(tasks.tx.all(Node), key=lambda node: (node.created, node.id)):
        slot = slots.get((0, node.id)) or Slot(0, node.id)
        if _is_done(slot.tasks):
            continue
        if node.spec.availability == "drain" or not tasks.accepts(node):
            for task in slot.tasks:
                tasks.stop(task)
        elif not any(task.desired <= TaskState.RUNNING for task in slot.tasks) and _was_stopped(slot.tasks):
            if node.state == "ready" and node.spec.availability == "active":
                tasks.create(slot)
        elif node.state != "down":
            _go_on(tasks, slot)


def _is_done(tasks: Iterable[Task]) -> bool:
    return any(task.status.state == TaskState.COMPLETE for task in tasks)


def _was_stopped(tasks: list[Task]) -> bool:
    """There is none, or somebody wanted the last one to end."""
    return not tasks or _latest(tasks).stopped


def _latest(tasks: list[Task]) -> Task:
    return max(tasks, key=lambda task: (task.created, task.desired <= TaskState.RUNNING, task.id))


def _go_on(tasks: ServiceTasks, slot: Slot) -> bool:
    """Whether a task of the slot runs, or will again."""
    latest = _latest(slot.tasks)
    before = [task for task in slot.tasks if task.id != latest.id]
    for task in before:
        tasks.stop(task)
    if latest.status.state.dead:
        if tasks.waits_for_turn(latest):
            pass  # its successor waits for that turn
        elif latest.stopped or tasks.should_restart(slot, latest):
            tasks.replace(slot, latest, tasks.delay)
        else:
            tasks.stop(latest)
            return False
    elif latest.desired <= TaskState.RUNNING:
        if tasks.is_unfit(latest) or (slot.node is None and tasks.is_lost(latest)):
            tasks.replace(slot, latest, tasks.delay if tasks.is_down(latest) else 0.0)
        else:
            tasks.promote(latest, before)
    return True
