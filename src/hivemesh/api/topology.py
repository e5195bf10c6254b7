"""`GET /hivemesh/topology`: the swarm as a picture, by managers. `?detail=full` or `compact`; else as fits."""

from aiohttp import web

from hivemesh.api.http import answer, local_of
from hivemesh.wire.topology import detail_of

routes = web.RouteTableDef()


@routes.get("/hivemesh/topology")
async def topology(request: web.Request) -> web.Response:
    return answer(await local_of(request).topology(detailed=detail_of(request.query.get("detail", ""))))
