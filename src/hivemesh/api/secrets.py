"""`/secrets` and `/configs`: bytes that containers find as files. A secret's are never shown."""

from collections.abc import Iterable
from typing import TypeVar

from aiohttp import web

from hivemesh.api.errors import control_plane
from hivemesh.api.http import (
    answer,
    any_of,
    body_of,
    changed_spec,
    filters_of,
    labels_match,
    manager_of,
    version_of_object,
)
from hivemesh.model.secret import Config, Secret
from hivemesh.wire.engine import objects, requests

routes = web.RouteTableDef()

P = TypeVar("P", Secret, Config)


def _serve(path: str, kind: type[P], known_filters: Iterable[str]) -> None:
    """The two kinds differ in their paths, and in what `objects.payload` shows."""

    @routes.get(path)
    async def list_payloads(request: web.Request) -> web.Response:
        manager = manager_of(request)
        filters = filters_of(request, known_filters)
        found = [
            payload
            for payload in manager.payloads(kind)
            if any_of(filters, "id", payload.id.startswith)
            and any_of(filters, "name", payload.spec.name.startswith)
            and any_of(filters, "names", payload.spec.name.__eq__)
            and labels_match(filters, payload.spec.labels)
        ]
        found.sort(key=lambda payload: (payload.created, payload.id))
        return answer([objects.payload(payload) for payload in found])

    @routes.post(f"{path}/create")
    async def create(request: web.Request) -> web.Response:
        manager = manager_of(request)
        spec = requests.payload_spec(await body_of(request), kind)
        with control_plane():
            made = await manager.create_payload(kind, spec)
        return answer({"ID": made.id}, 201)

    @routes.get(path + "/{ref}")
    async def inspect(request: web.Request) -> web.Response:
        return answer(objects.payload(manager_of(request).payload(kind, request.match_info["ref"])))

    @routes.post(path + "/{ref}/update")
    async def update(request: web.Request) -> web.Response:
        manager = manager_of(request)
        spec = requests.payload_spec(await changed_spec(request), kind)
        version = version_of_object(request)
        with control_plane():
            await manager.update_payload(kind, request.match_info["ref"], version, spec)
        return web.Response()

    @routes.delete(path + "/{ref}")
    async def remove(request: web.Request) -> web.Response:
        manager = manager_of(request)
        with control_plane():
            await manager.remove_payload(kind, request.match_info["ref"])
        return web.Response(status=204)


_serve("/secrets", Secret, ("id", "label", "name", "names"))
_serve("/configs", Config, ("id", "label", "name"))
