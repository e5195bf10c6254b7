"""`/containers`: where the engine's answers differ from what Docker's clients expect."""

from typing import Any
from urllib.parse import quote

from aiohttp import web

from hivemesh.api import passthrough
from hivemesh.model.errors import HivemeshError
from hivemesh.wire import codec
from hivemesh.wire.engine import strict

routes = web.RouteTableDef()


@routes.get("/containers/{ref}/stats")
async def stats(request: web.Request) -> web.StreamResponse:
    """What a container uses. Docker's names begin with a slash, which its clients cut off; Podman 4's have none."""
    ref = quote(request.match_info["ref"], safe="")
    await passthrough.ask(request, f"/containers/{ref}/json")  # it may not be there, which the stream would not say
    query = f"?{request.query_string}" if request.query_string else ""
    async with passthrough.stream(request, f"/containers/{ref}/stats{query}") as content:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        async for line in content:
            await response.write(_slashed(line))
    await response.write_eof()
    return response


def _slashed(line: bytes) -> bytes:
    try:
        value: Any = strict.decode(line)
    except HivemeshError:
        return line  # an empty line, or words of the engine's that are no JSON
    name = value.get("name") if isinstance(value, dict) else None
    if not name or name.startswith("/"):
        return line
    return codec.to_json({**value, "name": f"/{name}"}) + b"\n"
