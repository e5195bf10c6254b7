"""Forgetting tasks that are over: those to be removed at once, others beyond the history their slot may keep."""

from hivemesh.model.service import Service
from hivemesh.model.task import Task, TaskState
from hivemesh.store.tables import Transaction


def reap(tx: Transaction) -> None:
    """One pass over a transaction."""
    history: dict[tuple[str, int, str], list[Task]] = {}
    for task in list(tx.all(Task)):
        if task.desired == TaskState.REMOVE:
            if task.status.state.dead or not task.placed:
                tx.delete(task)
        elif task.desired > TaskState.RUNNING and task.status.state.dead:
            history.setdefault(_place(task), []).append(task)
    limit = tx.cluster.spec.orchestration.task_history_retention_limit
    for place, tasks in history.items():
        if len(tasks) <= limit:
            continue
        service = tx.get(Service, tasks[0].service_id)
        attempts = service.spec.task_template.restart_policy.max_attempts if service else 0
        keep = max(limit, attempts + 1 if attempts else 0)
        siblings = tx.tasks_of(tasks[0].service_id)
        lives = any(_place(task) == place and task.desired <= TaskState.RUNNING for task in siblings)
        if not lives:
            keep = max(keep, 1)  # the record of a slot that ended for good
        tasks.sort(key=lambda task: (task.created, task.status.timestamp), reverse=True)
        for task in tasks[keep:]:
            tx.delete(task)


def _place(task: Task) -> tuple[str, int, str]:
    """The slot, or what stands for one where a node does."""
    return task.service_id, task.slot, "" if task.slot else task.node_id or ""
