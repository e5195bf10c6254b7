"""`POST /hivemesh/trace`: the way of a packet, as planned, as the kernels have it, and as probes find it."""

import msgspec
from aiohttp import web

from hivemesh.api.http import answer, body_of, local_of
from hivemesh.model.errors import Invalid
from hivemesh.wire.trace import Question

routes = web.RouteTableDef()


@routes.post("/hivemesh/trace")
async def trace(request: web.Request) -> web.Response:
    try:
        question = msgspec.convert(await body_of(request), Question)
    except msgspec.ValidationError as error:
        raise Invalid(f"invalid question: {error}") from None
    return answer(await local_of(request).trace(question))
