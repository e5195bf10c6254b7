"""`/networks`: the swarm's overlay networks and, beside them, those of this node."""

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

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
    one_of,
    pattern_match,
    truth_of,
)
from hivemesh.api.local import LocalNode
from hivemesh.model.errors import Conflict, HivemeshError, Invalid, NotFound, Unavailable, Unsupported
from hivemesh.model.ids import EndpointID
from hivemesh.model.local import PREDEFINED, LocalNetwork
from hivemesh.model.network import Network
from hivemesh.wire.engine import localnets, objects, requests
from hivemesh.wire.insight import Insight

if TYPE_CHECKING:
    from hivemesh.agent.local import LocalNetworks
    from hivemesh.control.manager import Manager  # a worker never loads the managers' part

log = logging.getLogger("hivemesh.api")
routes = web.RouteTableDef()

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("label", "label!", "until")


@routes.get("/networks")
async def list_networks(request: web.Request) -> web.Response:
    """Those of the swarm on every node, workers too; and those of this node."""
    filters = filters_of(request, FILTERS)
    one_of(filters, "type", ("builtin", "custom"))
    one_of(filters, "scope", ("swarm", "global", "local"))
    truth_of(filters, "dangling")
    insights = (await local_of(request).networks()).networks
    local = local_of(request).local_networks
    found = [objects.network(about) for about in insights]
    found += [localnets.local_network(network, _endpoints(local, network)) for network in local.all]
    found += [localnets.builtin(name, driver) for name, driver in localnets.BUILTIN.items()]
    used = {about.network.id for about in insights if about.services or about.hosts}
    shown = [network for network in found if _matches(network, filters, used)]
    return answer([network | {"Containers": {}} for network in shown])


def _endpoints(
    local: "LocalNetworks", network: LocalNetwork, ids: Mapping[EndpointID, str] | None = None
) -> list[localnets.Endpoint]:
    """`ids` are those of containers by their endpoints, where somebody else knows better."""
    known = ids or {}
    return [
        localnets.Endpoint(
            container=known.get(attachment.endpoint_id) or task.status.container_id or task.id, name=task.name,
            endpoint=attachment.endpoint_id, mac=attachment.mac, addresses=attachment.addresses,
        )
        for task, attachment in local.members(network.id)
    ]  # fmt: skip


def _matches(network: dict[str, Any], filters: Filters, used: Collection[str]) -> bool:
    name, identifier = str(network.get("Name", "")), str(network.get("Id", ""))
    kind = "builtin" if name in PREDEFINED or network.get("Ingress") else "custom"
    dangling = kind == "custom" and identifier not in used and not network.get("Containers")
    return (
        pattern_match(filters, "name", name)
        and pattern_match(filters, "id", identifier)
        and any_of(filters, "driver", str(network.get("Driver")).__eq__)
        and any_of(filters, "scope", str(network.get("Scope")).__eq__)
        and any_of(filters, "type", kind.__eq__)
        and truth_of(filters, "dangling") in (None, dangling)
        and labels_match(filters, network.get("Labels") or {})
    )


@routes.get("/networks/{ref}")
async def inspect(request: web.Request) -> web.StreamResponse:
    ref = request.match_info["ref"]
    scope = request.query.get("scope", "")
    if scope not in ("", "swarm", "local", "global"):
        raise Invalid(f"invalid scope {scope!r}: use swarm, local or global")
    local = local_of(request)
    here = _look_here(local, ref) if scope in ("", "local") else None
    if here is not None and here["Id"] == ref:
        return answer(here)
    about = await _look(local, ref) if scope in ("", "swarm") else None
    if about is None and here is not None:
        return answer(here)
    if about is None:
        raise NotFound(f"network {ref} not found")
    if here is not None and ref in (here["Name"], about.network.spec.name):
        raise Invalid(f"network {ref} is ambiguous (2 matches found on scopes)")
    value = objects.network(about)
    value["Containers"] = objects.network_containers(about, local.node_id)
    value["Status"] = objects.network_status(about)
    mine = local.local_networks.known(about.network.id)
    if mine is not None:  # of the swarm, and made by each node: this one's settings and containers
        ids = {member.endpoint: member.container for member in about.members if member.container}
        seen = localnets.local_network(mine, _endpoints(local.local_networks, mine, ids))
        value |= {key: seen[key] for key in ("EnableIPv6", "IPAM", "Internal", "Options", "Containers")}
    if flag(request, "verbose"):
        value["Services"] = objects.network_services(about)
    return answer(value)


def _look_here(local: LocalNode, ref: str) -> dict[str, Any] | None:
    """A network of this node; None when there is none of that name. Raises `Invalid` (ambiguous)."""
    for name, driver in localnets.BUILTIN.items():
        if ref in (name, identifier := localnets.builtin_id(name)) or (len(ref) > 11 and identifier.startswith(ref)):
            return localnets.builtin(name, driver)
    try:
        network = local.local_networks.find(ref)
    except NotFound:
        return None
    return localnets.local_network(network, _endpoints(local.local_networks, network))


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
    local = local_of(request)
    if not requests.is_of_the_swarm(body):
        wanted = localnets.local_spec(body)
        insights = (await local.networks()).networks
        if any(about.network.spec.name == wanted.name for about in insights):
            raise Conflict(f"network with name {wanted.name} already exists")
        return answer({"Id": local.local_networks.create(wanted).id, "Warning": ""}, 201)
    spec = requests.network_spec(body)
    if local.manager is not None and any(network.name == spec.name for network in local.local_networks.known_all):
        raise Conflict(f"network with name {spec.name} already exists")
    network = await manager_of(request).create_network(spec)
    return answer({"Id": network.id, "Warning": ""}, 201)


@routes.delete("/networks/{ref}")
async def remove(request: web.Request) -> web.StreamResponse:
    local, ref = local_of(request), request.match_info["ref"]
    manager, here = local.manager, _look_here(local, ref)
    network = _find(manager, ref)
    if here is not None and (here["Id"] == ref or network is None):
        local.local_networks.remove(here["Name"])
        return web.Response(status=204)
    if here is not None:
        raise Invalid(f"network {ref} is ambiguous (2 matches found on scopes)")
    if manager is None and await _look(local, ref) is not None:
        manager_of(request)  # managers remove networks, and this node is none: says so
    if network is None or manager is None:
        raise NotFound(f"network {ref} not found")
    with control_plane():
        await manager.remove_network(network.id)
    return web.Response(status=204)


@routes.post("/networks/prune")
async def prune(request: web.Request) -> web.Response:
    """Networks that nobody uses: those of this node, and on managers those of the swarm."""
    filters = filters_of(request, PRUNE_FILTERS)
    if "until" in filters:
        raise Unsupported("the filter until is not supported for networks: remove them by name")
    manager = local_of(request).manager
    deleted = _prune_here(local_of(request), filters)
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


def _prune_here(local: LocalNode, filters: Filters) -> list[str]:
    """What no container is on, running or not."""
    used = local.attached.networks if local.attached is not None else frozenset()
    deleted = []
    for network in local.local_networks.known_all:
        labels = network.spec.labels
        kept = "label!" in filters and labels_match(filters, labels, "label!")
        if network.id in used or network.is_default or network.spec.config_only:
            continue
        if not kept and labels_match(filters, labels):
            local.local_networks.remove(network.id)
            deleted.append(network.name)
    local.local_networks.pruned(len(deleted))
    return deleted
