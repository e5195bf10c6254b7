"""The API's description: true to the routes, well formed, and readable by others' tools."""

import re
from typing import Any

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from api_harness import outside_api

from hivemesh.api.app import create_app
from hivemesh.api.openapi import document
from hivemesh.api.operations import OPERATIONS

MACHINE: Any = object()  # routes are only looked up


def described() -> set[tuple[str, str]]:
    return {(operation.method, operation.path) for operation in OPERATIONS}


def routed() -> set[tuple[str, str]]:
    """Routes of our own, without the version's copy and without what goes to the engine whatever it is."""
    found = set()
    for route in create_app(MACHINE).router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if not path.startswith("/v{version}") and route.method != "*":
            found.add((route.method, path))
    return {(method, path) for method, path in found if method != "HEAD" or ("GET", path) not in found}


def test_every_route_is_described() -> None:
    assert routed() - described() == set()


async def test_everything_described_has_a_route() -> None:
    router = create_app(MACHINE).router
    for operation in OPERATIONS:
        path = re.sub(r"\{\w+\}", "some", operation.path)
        for prefix in ("", "/v1.51"):
            found = await router.resolve(make_mocked_request(operation.method, prefix + path))
            error = found.http_exception
            assert error is None or isinstance(error, web.HTTPSuccessful), (operation.path, error)


def test_nothing_is_described_twice() -> None:
    assert len(described()) == len(OPERATIONS)
    names = [entry["operationId"] for entries in document()["paths"].values() for entry in entries.values()]
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere() -> None:
    whole = document()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                at: Any = whole
                for part in value["$ref"].removeprefix("#/").split("/"):
                    at = at[part]
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(whole)
    spec = whole["components"]["schemas"]["ServiceSpec"]["properties"]
    assert spec["TaskTemplate"]["$ref"] == "#/components/schemas/TaskSpec"


async def test_description_is_served_with_and_without_version() -> None:
    async with outside_api() as api:
        for path in ("/openapi.json", "/v1.40/openapi.json"):
            status, headers, body = await api.http("GET", path)
            assert (status, headers["content-type"]) == (200, "application/json")
            assert body["openapi"] == "3.1.0"
            assert body["paths"]["/services/{ref}/update"]["post"]["parameters"][1]["name"] == "version"
