"""`/swarm`: this machine enters, leaves and configures a swarm.

Entering and leaving go on when the client hangs up: half a step would be neither in nor out.
"""

import asyncio

from aiohttp import web

from hivemesh.api.errors import ALREADY_IN_SWARM, NOT_IN_SWARM, control_plane
from hivemesh.api.http import answer, body_of, flag, local_of, manager_of, version_of_object
from hivemesh.model.errors import Conflict, Unavailable
from hivemesh.wire.engine import objects, requests

routes = web.RouteTableDef()


@routes.post("/swarm/init")
async def init(request: web.Request) -> web.Response:
    local = local_of(request)
    wanted = requests.swarm_init(await body_of(request))
    if local.state != "inactive" and not wanted.force_new_cluster:
        raise Unavailable(ALREADY_IN_SWARM)
    return answer(await asyncio.shield(local.init(wanted)))  # a bare JSON string


@routes.post("/swarm/join")
async def join(request: web.Request) -> web.Response:
    local = local_of(request)
    wanted = requests.swarm_join(await body_of(request))
    if local.state != "inactive":
        raise Unavailable(ALREADY_IN_SWARM)
    await asyncio.shield(local.join(wanted))
    return web.Response()


@routes.post("/swarm/leave")
async def leave(request: web.Request) -> web.Response:
    local = local_of(request)
    if local.state == "inactive":
        raise Unavailable(NOT_IN_SWARM)
    await asyncio.shield(local.leave(force=flag(request, "force")))
    return web.Response()


@routes.get("/swarm")
async def inspect(request: web.Request) -> web.Response:
    return answer(objects.swarm(manager_of(request).tables.view.cluster))


@routes.post("/swarm/update")
async def update(request: web.Request) -> web.Response:
    manager = manager_of(request)
    spec = requests.swarm_spec(await body_of(request))
    version = version_of_object(request)
    with control_plane():
        await manager.update_cluster(version, spec)
        worker, managers = flag(request, "rotateWorkerToken"), flag(request, "rotateManagerToken")
        if worker or managers:
            await manager.rotate_tokens(worker=worker, manager=managers)
    return web.Response()


@routes.get("/swarm/unlockkey")
async def unlock_key(request: web.Request) -> web.Response:
    manager_of(request)
    return answer({"UnlockKey": ""})


@routes.post("/swarm/unlock")
async def unlock(request: web.Request) -> web.Response:
    raise Conflict("swarm is not locked")
