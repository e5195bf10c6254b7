"""`/services`: what users want running."""

from aiohttp import web

from hivemesh.api.errors import control_plane
from hivemesh.api.http import (
    answer,
    any_of,
    body_of,
    changed_spec,
    credential_of,
    filters_of,
    flag,
    labels_match,
    manager_of,
    version_of_object,
)
from hivemesh.model.errors import Invalid
from hivemesh.model.node import Node
from hivemesh.model.service import Service
from hivemesh.wire.engine import objects, requests

routes = web.RouteTableDef()

FILTERS = ("id", "label", "mode", "name", "runtime")


@routes.get("/services")
async def list_services(request: web.Request) -> web.Response:
    view = manager_of(request).tables.view
    filters = filters_of(request, FILTERS)
    found = [
        service
        for service in view.all(Service)
        if any_of(filters, "id", service.id.startswith)
        and any_of(filters, "name", service.spec.name.startswith)
        and any_of(filters, "mode", service.spec.mode.name.__eq__)
        and any_of(filters, "runtime", "container".__eq__)
        and labels_match(filters, service.spec.labels)
    ]
    found.sort(key=lambda service: (service.created, service.id))
    status = flag(request, "status")
    down = {node.id for node in view.all(Node) if node.state == "down"}
    return answer(
        [objects.service(service, view.tasks_of(service.id) if status else None, down=down) for service in found]
    )


@routes.post("/services/create")
async def create(request: web.Request) -> web.Response:
    manager = manager_of(request)
    spec = requests.service_spec(await body_of(request))
    with control_plane():
        service = await manager.create_service(spec, credential_of(request))
    return answer({"ID": service.id, "Warnings": None}, 201)


@routes.get("/services/{ref}")
async def inspect(request: web.Request) -> web.Response:
    service = manager_of(request).service(request.match_info["ref"])
    return answer(objects.service(service, defaults=flag(request, "insertDefaults")))


@routes.post("/services/{ref}/update")
async def update(request: web.Request) -> web.Response:
    manager = manager_of(request)
    rollback = request.query.get("rollback", "")
    if rollback not in ("", "none", "previous"):
        raise Invalid(f"unrecognized rollback option {rollback!r}: use previous or none")
    spec = requests.service_spec(await changed_spec(request))
    version = version_of_object(request)
    source = request.query.get("registryAuthFrom", "")
    if source not in ("", "spec", "previous-spec"):
        raise Invalid(f"invalid registryAuthFrom {source!r}: use spec or previous-spec")
    with control_plane():
        await manager.update_service(
            request.match_info["ref"], version, spec, rollback == "previous", credential_of(request), source
        )
    return answer({"Warnings": None})


@routes.delete("/services/{ref}")
async def remove(request: web.Request) -> web.Response:
    manager = manager_of(request)
    with control_plane():
        await manager.remove_service(request.match_info["ref"])
    return web.Response()
