"""`/openapi.json`: the API's own description (OpenAPI 3.1), made from the very types that requests are read with."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

import hivemesh
from hivemesh.api.http import MAX_VERSION, answer, version_text
from hivemesh.api.operations import OPERATIONS, Query
from hivemesh.model.addr import Address

routes = web.RouteTableDef()

COMPONENT = "#/components/schemas/{name}"
ERROR = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "object": ("application/json", {"type": "object"}),
    "list": ("application/json", {"type": "array", "items": {"type": "object"}}),
    "string": ("application/json", {"type": "string"}),
    "text": ("text/plain", {"type": "string"}),
    "stream": ("application/octet-stream", {}),
}


@routes.get("/openapi.json")
async def describe(request: web.Request) -> web.Response:
    return answer(document())


@cache
def document() -> dict[str, Any]:
    """The whole description. Paths are without the version that may stand before each (`/v1.51/services`)."""
    bodies = [operation.body for operation in OPERATIONS if operation.body is not None]
    schemas, components = msgspec.json.schema_components(bodies, schema_hook=_custom, ref_template=COMPONENT)
    schema_of = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        content: dict[str, Any] = {}
        if operation.shape != "nothing":
            kind, schema = SHAPES[operation.shape]
            content = {"content": {kind: {"schema": schema}}}
        entry: dict[str, Any] = {
            "operationId": _identifier(operation.method, operation.path),
            "summary": operation.about,
            "tags": [operation.tag],
            "parameters": [
                *({"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                  for name in operation.parameters),
                *(_query(operation.query)),
                *(_filters(operation.filters)),
            ],
            "responses": {
                str(operation.status): {"description": "as asked", **content},
                "default": {"$ref": "#/components/responses/Error"},
            },
        }  # fmt: skip
        if operation.engine:
            entry["x-answered-by"] = "engine"
        if operation.body is not None:
            entry["requestBody"] = {
                "required": not operation.body_optional,
                "content": {"application/json": {"schema": schema_of[operation.body]}},
            }
        paths.setdefault(operation.path, {})[operation.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hivemesh",
            "summary": "The Docker Engine API for a swarm, containers by the engine beside us",
            "version": version_text(MAX_VERSION),
            "x-server-version": hivemesh.__version__,
        },
        "servers": [{"url": f"/v{version_text(MAX_VERSION)}"}, {"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": ERROR},
            "responses": {
                "Error": {
                    "description": "what is wrong, and what to do",
                    "content": {"application/json": {"schema": {"$ref": COMPONENT.format(name="Error")}}},
                }
            },
        },
    }


def _custom(kind: object) -> dict[str, Any]:
    """Of what msgspec does not know by itself: addresses of both families, as text."""
    if kind is Address:
        return {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
    raise NotImplementedError(kind)


def _identifier(method: str, path: str) -> str:
    words = [part.strip("{}_").replace(".", "_") for part in path.split("/") if part]
    return "_".join([method.lower(), *words])


def _query(parameters: Iterable[Query]) -> list[dict[str, Any]]:
    found = []
    for one in parameters:
        schema: dict[str, Any] = {"type": one.kind}
        if one.choices:
            schema["enum"] = list(one.choices)
        found.append(
            {"name": one.name, "in": "query", "required": one.required, "description": one.about, "schema": schema}
        )
    return found


def _filters(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """`filters` is JSON inside the query: names to values, as an object of booleans or, as of old, a list."""
    if not names:
        return []
    values = {
        "anyOf": [
            {"type": "object", "additionalProperties": {"type": "boolean"}},
            {"type": "array", "items": {"type": "string"}},
        ]
    }
    schema = {"type": "object", "properties": dict.fromkeys(names, values), "additionalProperties": False}
    return [{"name": "filters", "in": "query", "content": {"application/json": {"schema": schema}}}]
