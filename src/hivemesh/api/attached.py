"""Plain containers on networks of ours: calls that the engine cannot answer alone, on their way to it.

What is done is `agent/attached.py`'s; what is said, `wire/engine/containers.py`'s. A container on none of our networks
(modes `host`, `none`, `container:x`) passes as if this module were not there.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import web

from hivemesh.api import passthrough
from hivemesh.api.errors import GRPC_CODE, ApiError, status_of
from hivemesh.api.http import answer, local_of, object_of
from hivemesh.model.errors import Conflict, Forbidden, HivemeshError, Invalid, NotFound, Unavailable
from hivemesh.model.ids import TaskID
from hivemesh.wire import codec
from hivemesh.wire.engine import containers, localnets, strict

if TYPE_CHECKING:
    from hivemesh.agent.attached import AttachedContainers, Place

log = logging.getLogger("hivemesh.api")
routes = web.RouteTableDef()

ENDING = {"", "KILL", "TERM", "INT", "QUIT", "2", "3", "9", "15"}
"""Signals after which a container is meant to stay ended, whatever its restart policy."""
Verb = Callable[["AttachedContainers", TaskID, Callable[[], Awaitable[web.Response]]], Awaitable[web.Response]]


# --- making ----------------------------------------------------------------------------------------------------------


@routes.post("/containers/create")
async def create(request: web.Request) -> web.StreamResponse:
    data = await request.read()
    body = strict.decode(data or b"{}")
    attached = local_of(request).attached
    names = containers.networks_of(body) if isinstance(body, dict) else ()
    if attached is None or not names:
        return await passthrough.exchange(request, _beside(attached, body, data))
    await request.app[passthrough.ENGINE].socket(request)  # a node without one says so before anything else
    await _check(request, attached, names)
    wish = containers.wish_of(body)

    async def make(place: "Place") -> web.Response:
        changed = containers.engine_body(body, place.owner, place.namespace, place.files)
        made = await passthrough.exchange(request, codec.to_json(changed))
        if made.status == 201:
            place.container = str(strict.decode(_bytes(made))["Id"])
            seen = await passthrough.ask(request, f"/containers/{place.container}/json")
            place.name = str(seen["Name"]).strip("/")
        return made

    with _attaching(request, names):
        return await attached.create(wish, request.query.get("name", "").strip("/"), make)


async def _check(request: web.Request, attached: "AttachedContainers", names: Sequence[str]) -> None:
    """Raises `Invalid` for names that nobody knows: with 404, Docker's CLI takes the image for missing and pulls it."""
    try:
        with _attaching(request, names):
            await attached.check(names)
    except NotFound as error:
        raise Invalid(str(error)) from error


def _beside(attached: "AttachedContainers | None", body: Any, data: bytes) -> bytes:
    """`containers/create` of one that shares the network of another: if that is ours, its names too."""
    host = strict.pick(body, "HostConfig") if isinstance(body, dict) else None
    mode = str(strict.pick(host, "NetworkMode") or "") if isinstance(host, dict) else ""
    kind, _, ref = mode.partition(":")
    record = attached.named(ref) if attached is not None and kind == "container" and ref else None
    return data if record is None else codec.to_json(containers.with_files(body, record.files))


@contextmanager
def _attaching(request: web.Request, names: Sequence[str]) -> Iterator[None]:
    """Refusals of managers in the words Docker has for them; those of networks of this node have theirs already."""
    local = local_of(request).local_networks
    names = [name for name in names if not local.has(name)]
    try:
        yield
    except (Forbidden, Invalid, Conflict) as error:
        if not names:
            raise
        text = str(error)
        name = next((name for name in names if name in text), names[0])
        code = next(GRPC_CODE[kind] for kind in type(error).__mro__ if kind in GRPC_CODE)
        raise ApiError(
            status_of(error), f"Could not attach to network {name}: rpc error: code = {code} desc = {text}"
        ) from error


# --- living ----------------------------------------------------------------------------------------------------------


@routes.post("/containers/{ref}/start")
async def start(request: web.Request) -> web.StreamResponse:
    return await _with_ours(request, lambda attached, owner, work: attached.start(owner, work))


@routes.post("/containers/{ref}/attach")
async def attach(request: web.Request) -> web.StreamResponse:
    """Clients do this before they start a container, to lose nothing of its output."""
    found = await _find(request, request.match_info["ref"])
    if found is None:
        return await passthrough.forward(request)
    attached, owner, _ = found
    with _attaching(request, [member.name for member in attached.shown(owner).networks]):
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(attached.looked_into(owner))
            except HivemeshError as error:
                # A client that cannot attach does not say why; it starts the container next, and tells that answer
                log.info("nobody can attach to container %s: %s", request.match_info["ref"], error)
                return await passthrough.hang_up(request)
            return await passthrough.forward(request)


@routes.post("/containers/{ref}/restart")
async def restart(request: web.Request) -> web.StreamResponse:
    return await _with_ours(request, lambda attached, owner, work: attached.restart(owner, work))


@routes.post("/containers/{ref}/stop")
async def stop(request: web.Request) -> web.StreamResponse:
    return await _with_ours(request, lambda attached, owner, work: attached.stop(owner, work))


@routes.post("/containers/{ref}/kill")
async def kill(request: web.Request) -> web.StreamResponse:
    if request.query.get("signal", "").upper().removeprefix("SIG") not in ENDING:
        return await passthrough.forward(request)
    return await _with_ours(request, lambda attached, owner, work: attached.stop(owner, work))


@routes.delete("/containers/{ref}")
async def remove(request: web.Request) -> web.StreamResponse:
    return await _with_ours(request, lambda attached, owner, work: attached.remove(owner, work))


@routes.post("/containers/{ref}/rename")
async def rename(request: web.Request) -> web.StreamResponse:
    async def renamed(
        attached: "AttachedContainers", owner: TaskID, work: Callable[[], Awaitable[web.Response]]
    ) -> web.Response:
        done = await work()
        if done.status < 300:
            await attached.rename(owner, request.query.get("name", "").strip("/"))
        return done

    return await _with_ours(request, renamed)


@routes.post("/containers/prune")
async def prune(request: web.Request) -> web.StreamResponse:
    done, attached = await passthrough.exchange(request), local_of(request).attached
    if attached is not None:
        await attached.tidy()
    return done


async def _with_ours(request: web.Request, verb: Verb) -> web.StreamResponse:
    """`verb` around the engine's part when the container is on networks of ours, else only that."""
    found = await _find(request, request.match_info["ref"])
    if found is None:
        done = await passthrough.exchange(request)
        if done.status >= 500:
            await _explain(request)
        return done
    attached, owner, _ = found
    with _attaching(request, [member.name for member in attached.shown(owner).networks]):
        return await verb(attached, owner, lambda: passthrough.exchange(request))


async def _find(request: web.Request, ref: str) -> tuple["AttachedContainers", TaskID, Any] | None:
    """None for a container on none of our networks. Raises `NotFound` for one that there is not."""
    attached = local_of(request).attached
    if attached is None or not attached.any:
        return None
    value = await passthrough.ask(request, f"/containers/{quote(ref, safe='')}/json")
    owner = attached.owner_of(value["Id"])
    return (attached, owner, value) if owner is not None else None


async def _explain(request: web.Request) -> None:
    """Why the engine failed, if it is ours to know: all it says is that a file is missing. Raises `Unavailable`."""
    value = await passthrough.ask(request, f"/containers/{quote(request.match_info['ref'], safe='')}/json")
    if containers.LABEL in (value["Config"].get("Labels") or {}):
        name = str(value["Name"]).strip("/")
        raise Unavailable(
            f"container {name} was on networks of a swarm that this node has left: remove it and make it anew"
        )


# --- networks --------------------------------------------------------------------------------------------------------


@routes.post("/networks/{ref}/connect")
async def connect(request: web.Request) -> web.StreamResponse:
    network, body = request.match_info["ref"], await object_of(request)
    container, config = str(strict.pick(body, "Container") or ""), strict.pick(body, "EndpointConfig")
    attached = local_of(request).attached
    if attached is None:
        raise NotFound(f"network {network} not found")
    _refuse_builtin(network)
    with _attaching(request, [network]):
        await attached.check([network])
    found = await _find(request, container)
    if found is None:
        value = await passthrough.ask(request, f"/containers/{quote(container, safe='')}/json")  # is it there at all?
        mode = str((value.get("HostConfig") or {}).get("NetworkMode") or "none")
        if mode == "none":
            raise Invalid(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        raise Invalid(
            "container sharing network namespace with another container or host cannot be connected to any other "
            f"network (its network mode is {mode}): make it anew with --network {network}"
        )
    attached, owner, _ = found
    joining = containers.joining(network, config)
    if attached.is_member(owner, network):
        name = str(found[2]["Name"]).strip("/")
        raise Forbidden(f"endpoint with name {name} already exists in network {network}")
    with _attaching(request, [network]):
        await attached.connect(owner, joining)
    return web.Response(status=200)


@routes.post("/networks/{ref}/disconnect")
async def disconnect(request: web.Request) -> web.StreamResponse:
    network, body = request.match_info["ref"], await object_of(request)
    container = str(strict.pick(body, "Container") or "")
    _refuse_builtin(network)
    found = await _find(request, container)
    if found is None:
        value = await passthrough.ask(request, f"/containers/{quote(container, safe='')}/json")
        raise ApiError(500, f"container {value['Id']} is not connected to the network {network}")
    attached, owner, _ = found
    await attached.disconnect(owner, network)
    return web.Response(status=200)


def _refuse_builtin(network: str) -> None:
    if network in localnets.BUILTIN:
        raise Invalid(f"container cannot be connected to or disconnected from the {network} network: make it anew")


# --- showing ---------------------------------------------------------------------------------------------------------


@routes.get("/containers/{ref}/json")
async def inspect(request: web.Request) -> web.StreamResponse:
    attached, seen = local_of(request).attached, await passthrough.exchange(request)
    if seen.status != 200:
        return seen
    value = strict.decode(_bytes(seen))
    owner = attached.owner_of(str(value.get("Id"))) if attached is not None else None
    if attached is None or owner is None:
        return answer(localnets.with_builtin(value))
    return answer(containers.inspected(value, attached.shown(owner)))


@routes.get("/containers/json")
async def list_containers(request: web.Request) -> web.StreamResponse:
    attached, seen = local_of(request).attached, await passthrough.exchange(request)
    if seen.status != 200:
        return seen
    found = strict.decode(_bytes(seen)) or []
    wanted = _network_filter(request)
    if attached is None:
        return answer(found)
    if wanted:
        found += await _on_networks(request, attached, wanted, {value["Id"] for value in found})
    return answer([_listed(attached, value) for value in found])


def _listed(attached: "AttachedContainers", value: Any) -> Any:
    owner = attached.owner_of(value["Id"])
    return containers.listed(value, attached.shown(owner)) if owner is not None else localnets.with_builtin(value)


def _network_filter(request: web.Request) -> list[str]:
    filters = strict.decode(request.query.get("filters", "{}").encode() or b"{}")
    return list(filters.get("network") or ()) if isinstance(filters, dict) else []


async def _on_networks(
    request: web.Request, attached: "AttachedContainers", networks: Sequence[str], known: set[str]
) -> list[Any]:
    """Containers on networks that the engine does not know, by the other conditions of the request."""
    query = dict(request.query)
    filters = strict.decode(query["filters"].encode())
    query["filters"] = codec.to_json({name: value for name, value in filters.items() if name != "network"}).decode()
    everything = await passthrough.ask(request, f"/containers/json?{request.url.with_query(query).raw_query_string}")
    found = []
    for value in everything or ():
        owner = attached.owner_of(value["Id"])
        if owner is None or value["Id"] in known:
            continue
        if any(attached.is_member(owner, network) for network in networks):
            found.append(value)
    return found


def _bytes(response: web.Response) -> bytes:
    body = response.body
    return body if isinstance(body, bytes) else b""
