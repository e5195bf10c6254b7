"""`/networks`: the swarm's overlay networks and, beside them, the engine's local ones."""

import logging
from collections.abc import Collection
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
from hivemesh.api.local import LocalNode
from hivemesh.model.errors import Conflict, HivemeshError, Invalid, NotFound, Unavailable, Unsupported
from hivemesh.model.network import Network
from hivemesh.wire.engine import objects, requests, strict
from hivemesh.wire.insight import Insight

if TYPE_CHECKING:
    from hivemesh.control.manager import Manager  # a worker never loads the managers' part

log = logging.getLogger("hivemesh.api")
routes = web.RouteTableDef()

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("label", "label!", "until")
BUILTIN = ("bridge", "host", "none", "podman")


@routes.get("/networks")
async def list_networks(request: web.Request) -> web.Response:
    """Those of the swarm on every node, workers too; and the engine's."""
    filters = filters_of(request, FILTERS)
    insights = (await local_of(request).networks()).networks
    found = [objects.network(about) for about in insights]
    if "local" in filters.get("scope", ["local"]):
        known = {network["Id"] for network in found}
        found += [network for network in await _engine_networks(request) if network.get("Id") not in known]
    used = {about.network.id for about in insights if about.services or about.hosts}
    return answer([network for network in found if _matches(network, filters, used)])


async def _engine_networks(request: web.Request) -> list[dict[str, Any]]:
    try:
        value = await passthrough.ask(request, "/networks")
    except (HivemeshError, OSError) as error:
        log.info("listing networks without the engine's: %s", error)
        return []
    return value if isinstance(value, list) else []


def _matches(network: dict[str, Any], filters: Filters, used: Collection[str]) -> bool:
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
    about = await _look(local, ref) if scope in ("", "swarm") else None
    if about is None:
        if scope == "swarm":
            raise NotFound(f"network {ref} not found")
        try:
            return answer(await passthrough.ask(request, f"/networks/{ref}"))
        except (NotFound, Unsupported):
            raise NotFound(f"network {ref} not found") from None
    value = objects.network(about)
    value["Containers"] = objects.network_containers(about, local.node_id)
    value["Status"] = objects.network_status(about)
    if flag(request, "verbose"):
        value["Services"] = objects.network_services(about)
    return answer(value)


async def _look(local: LocalNode, ref: str) -> Insight | None:
    """A network of the swarm; None when there is none of that name, or nobody who could know."""
    try:
        return await local.network(ref)
    except NotFound:
        return None
    except Unavailable as error:
        log.info("%s", error)
        return None


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
    if manager is None and await _look(local_of(request), ref) is not None:
        manager_of(request)  # managers remove networks, and this node is none: says so
    if network is None or manager is None:
        try:
            return await passthrough.forward(request)
        except (Unsupported, Unavailable):
            raise NotFound(f"network {ref} not found") from None
    with control_plane():
        await manager.remove_network(network.id)
    return web.Response(status=204)


@routes.post("/networks/prune")
async def prune(request: web.Request) -> web.Response:
    """Unused networks of the swarm. The engine's own are left to its own tools, which know what uses them."""
    filters = filters_of(request, PRUNE_FILTERS)
    if "until" in filters:
        raise Unsupported("the filter until is not supported for networks: remove them by name")
    manager = local_of(request).manager
    deleted: list[str] = []
    if manager is not None:
        used = {about.network.id for about in manager.insights().networks if about.services}
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
