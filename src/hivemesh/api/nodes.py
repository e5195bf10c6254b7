"""`/nodes`: the machines of the swarm."""

from aiohttp import web

from hivemesh.api import tls
from hivemesh.api.errors import control_plane
from hivemesh.api.http import (
    Filters,
    answer,
    any_of,
    changed_spec,
    filters_of,
    flag,
    labels_match,
    manager_of,
    version_of_object,
)
from hivemesh.model.errors import Invalid
from hivemesh.model.node import Node
from hivemesh.wire.engine import objects, requests

routes = web.RouteTableDef()

FILTERS = ("id", "label", "node.label", "membership", "name", "role")


@routes.get("/nodes")
async def list_nodes(request: web.Request) -> web.Response:
    manager = manager_of(request)
    view = manager.tables.view
    filters = filters_of(request, FILTERS)
    for name, known in (("role", ("worker", "manager")), ("membership", ("accepted", "pending"))):
        for value in filters.get(name, ()):
            if value not in known:
                raise Invalid(f"Invalid {name} filter: '{value}'")
    found = [node for node in view.all(Node) if _matches(node, filters)]
    found.sort(key=lambda node: (node.created, node.id))
    return answer([objects.node(node, tls.of_node(node, view.cluster), manager.leader) for node in found])


def _matches(node: Node, filters: Filters) -> bool:
    return (
        any_of(filters, "id", node.id.startswith)
        and any_of(filters, "name", (node.spec.name or node.description.hostname).startswith)
        and any_of(filters, "role", node.spec.role.__eq__)
        and any_of(filters, "membership", "accepted".__eq__)
        and labels_match(filters, node.description.labels)
        and labels_match(filters, node.spec.labels, "node.label")
    )


@routes.get("/nodes/{ref}")
async def inspect(request: web.Request) -> web.Response:
    manager = manager_of(request)
    node = manager.node(request.match_info["ref"])
    return answer(objects.node(node, tls.of_node(node, manager.cluster), manager.leader))


@routes.post("/nodes/{ref}/update")
async def update(request: web.Request) -> web.Response:
    manager = manager_of(request)
    spec = requests.node_spec(await changed_spec(request))
    version = version_of_object(request)
    with control_plane():
        await manager.update_node(request.match_info["ref"], version, spec)
    return web.Response()


@routes.delete("/nodes/{ref}")
async def remove(request: web.Request) -> web.Response:
    manager = manager_of(request)
    with control_plane():
        await manager.remove_node(request.match_info["ref"], force=flag(request, "force"))
    return web.Response()
