"""`/networks`: the swarm's overlay networks and, beside them, the engine's local ones."""

import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web

from hivemesh.api import passthrough
from hivemesh.api.errors import control_plane
from hivemesh.api.http import (
    Filters,
    answer,
    any_of,
    body_of,
    filters_of,
    flag,
    labels_match,
    local_of,
    manager_of,
    pattern_match,
)
from hivemesh.model.errors import Conflict, HivemeshError, Invalid, NotFound, Unavailable, Unsupported
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import Service
from hivemesh.model.task import Task
from hivemesh.wire.engine import objects, requests, strict

if TYPE_CHECKING:
    from hivemesh.control.manager import Manager  # a worker never loads the managers' part

log = logging.getLogger("hivemesh.api")
routes = web.RouteTableDef()

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("label", "label!", "until")
BUILTIN = ("bridge", "host", "none", "podman")


@routes.get("/networks")
async def list_networks(request: web.Request) -> web.Response:
    filters = filters_of(request, FILTERS)
    manager = local_of(request).manager
    found: list[dict[str, Any]] = []
    if manager is not None:
        view = manager.tables.view
        nodes = view.all(Node)
        networks = sorted(view.all(Network), key=lambda network: (network.created, network.id))
        found = [objects.network(network, nodes) for network in networks]
    if "local" in filters.get("scope", ["local"]):
        known = {network["Id"] for network in found}
        found += [network for network in await _engine_networks(request) if network.get("Id") not in known]
    used = _used(manager) if manager else set()
    return answer([network for network in found if _matches(network, filters, used)])


async def _engine_networks(request: web.Request) -> list[dict[str, Any]]:
    try:
        value = await passthrough.ask(request, "/networks")
    except (HivemeshError, OSError) as error:
        log.info("listing networks without the engine's: %s", error)
        return []
    return value if isinstance(value, list) else []


def _used(manager: "Manager") -> set[str]:
    return {
        config.target for service in manager.tables.view.all(Service) for config in service.spec.task_template.networks
    }


def _matches(network: dict[str, Any], filters: Filters, used: set[str]) -> bool:
    name, identifier = str(network.get("Name", "")), str(network.get("Id", ""))
    kind = "builtin" if name in BUILTIN or network.get("Ingress") else "custom"
    dangling = kind == "custom" and identifier not in used and not network.get("Containers")
    return (
        pattern_match(filters, "name", name)
        and pattern_match(filters, "id", identifier)
        and any_of(filters, "driver", str(network.get("Driver")).__eq__)
        and any_of(filters, "scope", str(network.get("Scope")).__eq__)
        and any_of(filters, "type", kind.__eq__)
        and any_of(filters, "dangling", lambda value: (value.lower() in ("true", "1")) == dangling)
        and labels_match(filters, network.get("Labels") or {})
    )


@routes.get("/networks/{ref}")
async def inspect(request: web.Request) -> web.StreamResponse:
    ref = request.match_info["ref"]
    scope = request.query.get("scope", "")
    if scope not in ("", "swarm", "local", "global"):
        raise Invalid(f"invalid scope {scope!r}: use swarm, local or global")
    local = local_of(request)
    network = _find(local.manager, ref) if scope in ("", "swarm") else None
    if network is None or local.manager is None:
        if scope == "swarm":
            raise NotFound(f"network {ref} not found")
        try:
            return answer(await passthrough.ask(request, f"/networks/{ref}"))
        except (NotFound, Unsupported):
            raise NotFound(f"network {ref} not found") from None
    view = local.manager.tables.view
    value = objects.network(network, view.all(Node))
    here = view.get(Node, local.node_id) if local.node_id else None
    value["Containers"] = objects.network_containers(network, here, view.all(Task))
    if flag(request, "verbose"):
        nodes = {node.id: node for node in view.all(Node)}
        value["Services"] = objects.network_services(network, view.all(Service), view.all(Task), nodes)
    return answer(value)


def _find(manager: "Manager | None", ref: str) -> Network | None:
    try:
        return manager.network(ref) if manager else None
    except NotFound:
        return None


@routes.post("/networks/create")
async def create(request: web.Request) -> web.StreamResponse:
    body = await body_of(request)
    manager = local_of(request).manager
    if requests.network_driver(body) != requests.OVERLAY:
        name = str(strict.pick(body, "Name") or "")
        if manager and any(network.spec.name == name for network in manager.tables.view.all(Network)):
            raise Conflict(f"network with name {name} already exists")
        return await passthrough.forward(request, await request.read())
    spec = requests.network_spec(body)
    network = await manager_of(request).create_network(spec)
    return answer({"Id": network.id, "Warning": ""}, 201)


@routes.delete("/networks/{ref}")
async def remove(request: web.Request) -> web.StreamResponse:
    ref, manager = request.match_info["ref"], local_of(request).manager
    network = _find(manager, ref)
    if network is None or manager is None:
        try:
            return await passthrough.forward(request)
        except (Unsupported, Unavailable):
            raise NotFound(f"network {ref} not found") from None
    with control_plane():
        await manager.remove_network(network.id)
    return web.Response(status=204)


@routes.post("/networks/{ref}/connect")
@routes.post("/networks/{ref}/disconnect")
async def connect(request: web.Request) -> web.StreamResponse:
    passthrough.refuse_overlay(request, request.match_info["ref"])
    return await passthrough.forward(request)


@routes.post("/networks/prune")
async def prune(request: web.Request) -> web.Response:
    """Unused networks of the swarm. The engine's own are left to its own tools, which know what uses them."""
    filters = filters_of(request, PRUNE_FILTERS)
    if "until" in filters:
        raise Unsupported("the filter until is not supported for networks: remove them by name")
    manager = local_of(request).manager
    deleted: list[str] = []
    if manager is not None:
        used = _used(manager)
        for network in list(manager.tables.view.all(Network)):
            labels = network.spec.labels
            kept = "label!" in filters and labels_match(filters, labels, "label!")
            if network.id in used or network.spec.ingress or kept or not labels_match(filters, labels):
                continue
            try:
                await manager.remove_network(network.id)
            except HivemeshError as error:
                log.info("network %s is not pruned: %s", network.spec.name, error)
            else:
                deleted.append(network.spec.name)
    return answer({"NetworksDeleted": deleted})
