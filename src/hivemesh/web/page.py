"""The topology page's routes: the page itself, the picture as it changes, and traces by clicks."""

import zlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

import hivemesh
from hivemesh.model.errors import Invalid, NotFound
from hivemesh.model.ids import NodeID
from hivemesh.web.svg import layers, picture_css, svg
from hivemesh.wire import codec
from hivemesh.wire.topology import Picture, Scene, detail_of
from hivemesh.wire.trace import Question, Trace

if TYPE_CHECKING:
    from hivemesh.web.hub import Hub  # which needs the managers' part

TYPES = {
    "html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain",
}  # fmt: skip


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /trace`: a question, and the node where the way begins."""

    node: NodeID
    question: Question


TraceAt = Callable[[NodeID, Question], Awaitable[Trace]]


def page_routes(hub: Callable[[], "Hub"], trace: TraceAt) -> list[web.RouteDef]:
    """For the web port. `hub` may raise `Unavailable`; `trace` raises as a trace on that node does."""

    async def index(request: web.Request) -> web.Response:
        return _static(request, "index.html")

    async def static(request: web.Request) -> web.Response:
        return _static(request, request.match_info["name"])

    async def looks(request: web.Request) -> web.Response:
        return web.Response(text=picture_css(), content_type="text/css", headers={"Cache-Control": "no-cache"})

    async def document(request: web.Request) -> web.Response:
        picture = await hub().picture(detailed=_detail(request))
        return web.Response(body=codec.to_json(picture), content_type="application/json")

    async def drawing(request: web.Request) -> web.Response:
        picture = await hub().picture(detailed=_detail(request))
        return web.Response(text=svg(picture), content_type="image/svg+xml")

    async def stream(request: web.Request) -> web.StreamResponse:
        """Server-sent events: `scene` when the picture changed, `pulse` each second."""
        opened = [NodeID(node) for node in request.query.get("open", "").split(",") if node]
        states = hub().follow(opened, detailed=_detail(request))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async with aclosing(states):
            async for state in states:
                if isinstance(state, Picture):
                    await response.write(b"event: scene\ndata: %s\n\n" % codec.to_json(_scene(state)))
                else:
                    await response.write(b"event: pulse\ndata: %s\n\n" % codec.to_json(state))
        return response

    async def ask(request: web.Request) -> web.Response:
        try:
            asked = msgspec.json.decode(await request.read(), type=Asked)
        except msgspec.MsgspecError as error:
            raise Invalid(f"invalid question: {error}") from None
        found = await trace(asked.node, asked.question)
        return web.Response(body=codec.to_json(found), content_type="application/json")

    return [
        web.get("/", index),
        web.get("/static/picture.css", looks),
        web.get("/static/{name}", static),
        web.get("/topology.json", document),
        web.get("/topology.svg", drawing),
        web.get("/topology/stream", stream),
        web.post("/trace", ask),
    ]


def _scene(picture: Picture) -> Scene:
    return Scene(
        swarm=picture.swarm,
        width=picture.width,
        height=picture.height,
        drawing=layers(picture),
        items=picture.items,
        links=picture.links,
        summary=picture.summary,
    )


def _detail(request: web.Request) -> bool | None:
    return detail_of(request.query.get("detail", ""))


def _static(request: web.Request, name: str) -> web.Response:
    """A file of the package. Browsers ask again each time, and hear whether it is another."""
    kind = TYPES.get(name.rpartition(".")[2])
    file = files("hivemesh.web") / "static" / name
    if kind is None or "/" in name or not file.is_file():
        raise NotFound(f"there is no {name}")
    body = file.read_bytes()
    tag = f'"{hivemesh.__version__}-{zlib.crc32(body):x}"'
    headers = {"Cache-Control": "no-cache", "ETag": tag}
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)
