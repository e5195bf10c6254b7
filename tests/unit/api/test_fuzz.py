"""Whatever is sent to the API: no internal error, no answer that never ends, and everything works afterwards."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from api_fuzz import Made, requests
from api_harness import Served, manager_api, outside_api
from hypothesis import HealthCheck, Phase, given, settings

from hivemesh.api.openapi import document
from hivemesh.lab.http import UnixConnection

EXAMPLES = 30
PATIENCE = 10.0
"""Seconds for an answer that takes milliseconds."""

ALONE = ("/swarm/init", "/swarm/join", "/swarm/leave")
"""They change who answers; tested on a machine in no swarm."""
ENDLESS = {"/events": "until", "/services/{ref}/logs": "", "/tasks/{ref}/logs": ""}

OPERATIONS = [
    (method, path, entry)
    for path, entries in document()["paths"].items()
    for method, entry in entries.items()
    if entry.get("x-answered-by") != "engine"
]


@contextmanager
def in_background(rig: Any) -> Iterator[Served]:
    """A harness in a thread of its own: hypothesis calls from outside of any event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = rig()
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(PATIENCE)
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with in_background(manager_api) as served:
        yield served


@pytest.fixture(scope="module")
def outside() -> Iterator[Served]:
    with in_background(outside_api) as served:
        yield served


def send(socket: Path, method: str, target: str, body: bytes | None = None, *, whole: bool = True) -> tuple[int, bytes]:
    """Status and body; of a stream without end only what is there at once (`whole` False)."""
    connection = UnixConnection(socket, PATIENCE)
    try:
        connection.request(method, target, body, {"Content-Type": "application/json"} if body is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read() if whole or answer.status >= 400 else b""
    finally:
        connection.close()


def call(socket: Path, method: str, target: str, value: Any = None) -> Any:
    status, body = send(socket, method, target, None if value is None else json.dumps(value).encode())
    assert status < 300, (method, target, status, body)
    return json.loads(body) if body else None


def make_world(socket: Path) -> None:
    """What requests may meet; only what is missing is made."""
    template = {"ContainerSpec": {"Image": "localhost/whoami"}}
    for path, value in (
        ("/networks", {"Name": "front", "Driver": "overlay", "Attachable": True}),
        ("/secrets", {"Name": "key", "Data": "eA=="}),
        ("/configs", {"Name": "conf", "Data": "eA=="}),
        ("/services", {"Name": "web", "TaskTemplate": template}),
        ("/services", {"Name": "once", "TaskTemplate": template, "Mode": {"ReplicatedJob": {}}}),
    ):
        names = {found.get("Name") or found["Spec"]["Name"] for found in call(socket, "GET", path)}
        if value["Name"] not in names:
            call(socket, "POST", f"{path}/create", value)


def check(socket: Path, made: Made, *, endless: bool = False) -> None:
    version = ""
    if "version" in made.query:
        status, body = send(socket, "GET", made.path.removesuffix("/update"))
        version = str(json.loads(body)["Version"]["Index"]) if status == 200 else "1"
    status, body = send(socket, made.method, made.target(version), made.body, whole=not endless)
    if status < 400:
        return
    assert made.method == "HEAD" or json.loads(body)["message"], body
    assert status in (400, 403, 404, 405, 409, 413, 501, 503) or b"update out of sequence" in body, (status, body)


def everything_works(served: Served) -> None:
    """Whatever was accepted can be shown, and the loops of the manager still run."""
    for path in ("/info", "/swarm", "/nodes", "/services?status=1", "/tasks", "/networks", "/secrets", "/configs"):
        call(served.socket, "GET", path)
    for service in call(served.socket, "GET", "/services"):
        call(served.socket, "GET", f"/services/{service['ID']}?insertDefaults=1")
    for network in call(served.socket, "GET", "/networks"):
        call(served.socket, "GET", f"/networks/{network['Id']}?verbose=1")
    assert not any(step.done() for step in served.machine.running)


def clear(socket: Path) -> None:
    for service in call(socket, "GET", "/services"):
        call(socket, "DELETE", f"/services/{service['ID']}")


def run(served: Served, method: str, path: str, entry: dict[str, Any], examples: int, *, repeat: bool = True) -> None:
    endless = path in ENDLESS

    @settings(
        max_examples=examples,
        derandomize=repeat,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if repeat else [Phase.generate, Phase.shrink],
    )
    @given(requests(method, path, entry, document()))
    def one(made: Made) -> None:
        check(served.socket, made, endless=endless)

    one()


@pytest.mark.parametrize(
    ("method", "path", "entry"),
    [pytest.param(*found, id=f"{found[0]} {found[1]}") for found in OPERATIONS if found[1] not in ALONE],
)
def test_odd_requests_get_errors_that_say_why(api: Served, method: str, path: str, entry: dict[str, Any]) -> None:
    make_world(api.socket)
    run(api, method, path, entry, EXAMPLES)
    everything_works(api)
    if path == "/services/create":
        clear(api.socket)


@pytest.mark.parametrize("path", ALONE)
def test_odd_entrances_get_errors_that_say_why(outside: Served, path: str) -> None:
    entry = document()["paths"][path]["post"]
    socket = outside.socket

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
    @given(requests("post", path, entry, document()))
    def one(made: Made) -> None:
        check(socket, made)
        send(socket, "POST", "/swarm/leave?force=1")
        assert call(socket, "GET", "/info")["Swarm"]["LocalNodeState"] == "inactive"

    one()


def test_number_that_fits_nowhere_is_refused_by_name(api: Served) -> None:
    spec = {"Name": "big", "TaskTemplate": {"RestartPolicy": {"Delay": 2**64}}}
    status, body = send(api.socket, "POST", "/services/create", json.dumps(spec).encode())
    assert status == 400
    assert f"TaskTemplate.RestartPolicy.Delay: {2**64} is out of range" in json.loads(body)["message"]


@pytest.mark.parametrize("path", sorted(ENDLESS))
def test_client_that_leaves_a_stream_ends_it(api: Served, path: str) -> None:
    make_world(api.socket)
    target = path.replace("{ref}", "web" if "services" in path else call(api.socket, "GET", "/tasks")[0]["ID"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        send(api.socket, "GET", f"{target}?follow=1&stdout=1", whole=False)
    until = threading.Event()
    for _ in range(200):
        if len(os.listdir("/proc/self/fd")) <= before + 2:
            return
        until.wait(0.02)
    raise AssertionError("connections stay open after their clients have left")


@pytest.mark.parametrize(
    "query", ["until=1", "since=1&until=2", "until=0.5&filters=%7B%22type%22%3A%5B%22node%22%5D%7D"]
)
def test_stream_with_an_end_ends(api: Served, query: str) -> None:
    assert send(api.socket, "GET", f"/events?{query}")[0] == 200


@pytest.mark.soak
@pytest.mark.parametrize(
    ("method", "path", "entry"),
    [pytest.param(*found, id=f"{found[0]} {found[1]}") for found in OPERATIONS if found[1] not in ALONE],
)
def test_many_odd_requests_get_errors_that_say_why(api: Served, method: str, path: str, entry: dict[str, Any]) -> None:
    make_world(api.socket)
    run(api, method, path, entry, 1000, repeat=False)
    everything_works(api)
    clear(api.socket)
