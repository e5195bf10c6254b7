"""`/swarm`: this machine enters, leaves and configures a swarm.

Entering and leaving go on when the client hangs up: half a step would be neither in nor out.
"""

import asyncio

from aiohttp import web

from hivemesh.api import tls
from hivemesh.api.errors import ALREADY_IN_SWARM, NOT_IN_SWARM, control_plane
from hivemesh.api.http import answer, body_of, changed_spec, flag, local_of, manager_of, version_of_object
from hivemesh.model.cluster import Renewal
from hivemesh.model.errors import Unavailable
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
    cluster = manager_of(request).cluster
    return answer(objects.swarm(cluster, tls.of_cluster(cluster)))


@routes.post("/swarm/update")
async def update(request: web.Request) -> web.Response:
    manager = manager_of(request)
    spec = requests.swarm_spec(await changed_spec(request))
    version = version_of_object(request)
    renewal = Renewal(
        worker=flag(request, "rotateWorkerToken"),
        manager=flag(request, "rotateManagerToken"),
        unlock_key=flag(request, "rotateManagerUnlockKey"),
    )
    with control_plane():
        await manager.update_cluster(version, spec, renewal)
    return web.Response()


@routes.get("/swarm/unlockkey")
async def unlock_key(request: web.Request) -> web.Response:
    return answer({"UnlockKey": manager_of(request).cluster.unlock_key})


@routes.post("/swarm/unlock")
async def unlock(request: web.Request) -> web.Response:
    key = requests.swarm_unlock(await body_of(request)).unlock_key
    await asyncio.shield(local_of(request).unlock(key))
    return web.Response()
