"""`GET /hivemesh/flows` and `/hivemesh/counts`: traffic as it happens, one JSON document a line, without an end or for
the seconds of `?for=`.

On a manager of all nodes, or of `?node=`; elsewhere of the node that is asked.
"""

import asyncio
import math
from contextlib import aclosing, suppress

from aiohttp import web

from hivemesh.api.http import local_of
from hivemesh.model.errors import Invalid
from hivemesh.wire import codec
from hivemesh.wire.feed import What

routes = web.RouteTableDef()


@routes.get("/hivemesh/flows")
async def flows(request: web.Request) -> web.StreamResponse:
    return await _stream(request, "flows")


@routes.get("/hivemesh/counts")
async def counts(request: web.Request) -> web.StreamResponse:
    return await _stream(request, "counts")


async def _stream(request: web.Request, what: What) -> web.StreamResponse:
    seconds = _seconds(request)
    entries = local_of(request).feed(what, request.query.get("node", ""))  # refuses before anything is sent
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)  # clients wait for the headers
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), aclosing(entries):
            async for entry in entries:
                await response.write(codec.to_json(entry) + b"\n")
    await response.write_eof()
    return response


def _seconds(request: web.Request) -> float | None:
    """Raises `Invalid`."""
    text = request.query.get("for", "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise Invalid(f"invalid for {text!r}: give seconds")
    return seconds
