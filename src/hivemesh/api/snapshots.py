"""`/hivemesh/swarm/snapshot`: all the managers know, as one file, and a swarm from such a file."""

import asyncio
import io

from aiohttp import web

from hivemesh.api.errors import ALREADY_IN_SWARM
from hivemesh.api.http import answer, local_of, manager_of
from hivemesh.model.errors import Unavailable
from hivemesh.store import backup
from hivemesh.wire.engine import SwarmInit

routes = web.RouteTableDef()

MAX_SNAPSHOT = 1 << 30
"""Bytes of a file we take: a thousand of the largest configs and all else."""


@routes.get("/hivemesh/swarm/snapshot")
async def save(request: web.Request) -> web.Response:
    snapshot = await manager_of(request).tables.store.snapshot()
    data = await asyncio.to_thread(backup.pack, snapshot, local_of(request).clock.now())
    return web.Response(body=io.BytesIO(data), content_type="application/octet-stream")


@routes.post("/hivemesh/swarm/snapshot")
async def restore(request: web.Request) -> web.Response:
    """The body is the file; addresses are parameters of the query, as `POST /swarm/init` has them in its body."""
    local = local_of(request)
    if local.state != "inactive":
        raise Unavailable(ALREADY_IN_SWARM)
    request = request.clone(client_max_size=MAX_SNAPSHOT)
    query = request.query
    place = SwarmInit(
        listen_addr=query.get("ListenAddr") or SwarmInit().listen_addr,
        advertise_addr=query.get("AdvertiseAddr", ""),
        data_path_addr=query.get("DataPathAddr", ""),
    )
    return answer(await asyncio.shield(local.restore(await request.read(), place)))
