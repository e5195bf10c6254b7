"""`POST /hivemesh/doctor`: what is wrong with this machine and its swarm. Changes nothing unless told to."""

import msgspec
from aiohttp import web

from hivemesh.api.http import answer, body_of, local_of
from hivemesh.model.errors import Invalid
from hivemesh.wire.doctor import Asked

routes = web.RouteTableDef()


@routes.post("/hivemesh/doctor")
async def doctor(request: web.Request) -> web.Response:
    try:
        asked = msgspec.convert(await body_of(request, optional=True), Asked)
    except msgspec.ValidationError as error:
        raise Invalid(f"invalid question: {error}") from None
    return answer(await local_of(request).doctor(asked))
