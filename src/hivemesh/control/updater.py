"""How tasks of a changed service are replaced: how many at a time, in which order, and when to stop or to go back.

Everything is read off the tasks and the service's `update_status`, so a pass may be repeated or lost. A task belongs to
an update when it has the service's present version and was made since the update began. It fails the update when it
ends within `monitor` of its start, or before it started.
"""

from collections.abc import Collection, Iterable

import msgspec

from hivemesh.model.service import Service, UpdateConfig, UpdateState, UpdateStatus
from hivemesh.model.task import Task

SECOND = 1_000_000_000
UPDATING, ROLLING_BACK = "update in progress", "rollback in progress"


def config_of(service: Service) -> UpdateConfig:
    """The rules of what is going on: an update's, or a rollback's."""
    spec = service.spec
    return (spec.rollback_config if _is_rollback(service) else spec.update_config) or UpdateConfig()


def is_rolling(service: Service) -> bool:
    """Outdated tasks may be replaced: nobody stopped the update."""
    status = service.update_status
    return status is None or status.state in ("updating", "rollback_started")


def begun(service: Service, now: float) -> Service:
    """With an update in progress."""
    if service.update_status is not None:
        return service
    status = UpdateStatus(state="updating", message=UPDATING, started=now)
    return msgspec.structs.replace(service, update_status=status)


def judged(service: Service, tasks: Collection[Task], slots: int, now: float) -> Service:
    """Paused or rolled back when too many new tasks have failed, else as it was."""
    status, config = service.update_status, config_of(service)
    if status is None or not is_rolling(service) or config.failure_action == "continue":
        return service
    failed = [task for task in tasks if has_failed(service, task)]
    if not failed or len(failed) <= config.max_failure_ratio * slots:
        return service
    last = max(failed, key=lambda task: task.status.timestamp)
    why = f"due to failure or early termination of task {last.id}"
    if _is_rollback(service):
        return _with(service, "rollback_paused", f"rollback paused {why}")
    if config.failure_action == "rollback" and service.previous_spec is not None:
        back = msgspec.structs.replace(
            service,
            spec=service.previous_spec,
            stale_version=service.version,
            spec_version=service.previous_version,
            previous_spec=None,
            previous_version=0,
        )
        status = UpdateStatus(state="rollback_started", message=f"update rolled back {why}", started=now)
        return msgspec.structs.replace(back, update_status=status)
    return _with(service, "paused", f"update paused {why}")


def has_failed(service: Service, task: Task) -> bool:
    """The task was made by the update going on, and did not last."""
    monitor = config_of(service).monitor / SECOND
    return (
        belongs(service, task) and task.ended and (not task.started or task.status.timestamp - task.started <= monitor)
    )


def belongs(service: Service, task: Task) -> bool:
    status = service.update_status
    return status is not None and task.spec_version == service.spec_version and task.created >= status.started


def settled_at(service: Service, tasks: Iterable[Task]) -> float:
    """When the update is over if nothing else happens: all new tasks have run for `monitor` by then."""
    assert service.update_status is not None
    monitor = config_of(service).monitor / SECOND
    started = [task.started for task in tasks if belongs(service, task) and task.started]
    return max(started) + monitor if started else service.update_status.started


def completed(service: Service, now: float) -> Service:
    if _is_rollback(service):
        return _with(service, "rollback_completed", "rollback completed", now)
    return _with(service, "completed", "update completed", now)


def _is_rollback(service: Service) -> bool:
    return service.update_status is not None and service.update_status.state.startswith("rollback")


def _with(service: Service, state: UpdateState, message: str, now: float = 0.0) -> Service:
    assert service.update_status is not None
    status = msgspec.structs.replace(service.update_status, state=state, message=message, completed=now)
    return msgspec.structs.replace(service, update_status=status)
