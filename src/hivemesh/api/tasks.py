"""`/tasks`: attempts to run services."""

from collections.abc import Callable

from aiohttp import web

from hivemesh.api.http import answer, any_of, filters_of, labels_match, manager_of
from hivemesh.model.errors import Invalid
from hivemesh.model.network import Network
from hivemesh.model.service import Service
from hivemesh.model.task import Task, TaskState
from hivemesh.wire.engine import objects

routes = web.RouteTableDef()

FILTERS = ("id", "name", "label", "service", "node", "desired-state", "runtime", "_up-to-date")
STATES = {state.name.lower(): state for state in TaskState}


@routes.get("/tasks")
async def list_tasks(request: web.Request) -> web.Response:
    manager = manager_of(request)
    view = manager.tables.view
    filters = filters_of(request, FILTERS)
    for state in filters.get("desired-state", ()):
        if state not in STATES:
            raise Invalid(f"Invalid desired-state filter: '{state}'")
    wanted = {STATES[state] for state in filters.get("desired-state", ())}
    services = {manager.service(ref).id for ref in filters.get("service", ())}
    nodes = {manager.node(ref).id for ref in filters.get("node", ())}
    current = "_up-to-date" in filters
    pool = [task for service in services for task in view.tasks_of(service)] if services else view.all(Task)
    found = [
        task
        for task in pool
        if not task.attached  # the place of a plain container on a network: `network inspect` shows it
        and (not nodes or task.node_id in nodes)
        and (not wanted or task.desired in wanted)
        and any_of(filters, "id", task.id.startswith)
        and any_of(filters, "name", f"{task.service_name}.{task.slot}".startswith)
        and any_of(filters, "runtime", "container".__eq__)
        and _matches(view.get(Service, task.service_id), task, filters, current)
    ]
    found.sort(key=lambda task: (task.service_name, task.slot, -task.created))
    network: Callable[[str], Network | None] = lambda identifier: view.get(Network, identifier)  # noqa: E731
    return answer([objects.task(task, network, view.get(Service, task.service_id)) for task in found])


def _matches(service: Service | None, task: Task, filters: dict[str, list[str]], current: bool) -> bool:
    """What only the task's service knows: its labels, and whether the task is as the service is now."""
    if current and (service is None or task.spec_version != service.spec_version):
        return False
    return labels_match(filters, service.spec.labels if service else {})


@routes.get("/tasks/{ref}")
async def inspect(request: web.Request) -> web.Response:
    manager = manager_of(request)
    task = manager.task(request.match_info["ref"])
    view = manager.tables.view
    network: Callable[[str], Network | None] = lambda identifier: view.get(Network, identifier)  # noqa: E731
    return answer(objects.task(task, network, view.get(Service, task.service_id)))
