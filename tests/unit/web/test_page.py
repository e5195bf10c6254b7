"""The page's routes, served as the daemon serves them."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from hivemesh.daemon.web import create_app
from hivemesh.model.errors import NotFound
from hivemesh.model.ids import NodeID
from hivemesh.web.hub import Hub
from hivemesh.web.page import page_routes
from hivemesh.wire import codec
from hivemesh.wire.topology import Picture, Pulse, Scene
from hivemesh.wire.trace import Question, Trace
from sights import a_swarm, picture_of

Client = TestClient[web.Request, web.Application]


class FakeHub:
    """Shows one swarm, and one pulse."""

    def __init__(self) -> None:
        self.opened: Collection[NodeID] = ()
        self.world = a_swarm()

    async def picture(self, *, detailed: bool | None = None) -> Picture:
        return picture_of(self.world, detailed=detailed)

    async def follow(
        self, opened: Collection[NodeID] = (), *, detailed: bool | None = None
    ) -> AsyncGenerator[Picture | Pulse, None]:
        self.opened = opened
        yield picture_of(self.world, detailed=detailed)
        yield Pulse(at=1.0, rates={}, nodes={})


async def trace(node: NodeID, question: Question) -> Trace:
    if question.target == "nobody":
        raise NotFound("nobody is called nobody")
    return Trace(source=f"{node}", target=question.target, protocol=question.protocol)


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub()


@pytest.fixture
async def client(hub: FakeHub) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(page_routes(lambda: cast(Hub, hub), trace)))) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/static/main.js", "text/javascript"),
        ("/static/page.css", "text/css"),
        ("/static/picture.css", "text/css"),
        ("/static/icon.svg", "image/svg+xml"),
        ("/topology.svg", "image/svg+xml"),
        ("/topology.json", "application/json"),
    ],
)
async def test_everything_comes_from_here_with_its_type(client: Client, path: str, kind: str) -> None:
    response = await client.get(path)
    assert (response.status, response.content_type) == (200, kind)
    text = await response.text()
    assert text
    assert "https://" not in text


async def test_file_that_did_not_change_is_not_sent_again(client: Client) -> None:
    first = await client.get("/static/main.js")
    again = await client.get("/static/main.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fsvg.py", "__init__.py"])
async def test_what_is_no_file_of_the_page_is_not_found(client: Client, name: str) -> None:
    assert (await client.get(f"/static/{name}")).status == 404


async def test_stream_begins_with_the_scene_and_goes_on_with_pulses(client: Client, hub: FakeHub) -> None:
    response = await client.get("/topology/stream?open=a,b&detail=full")
    assert response.content_type == "text/event-stream"
    events = [event.split("\n", 1) for event in (await response.text()).split("\n\n") if event]
    assert [kind for kind, _ in events] == ["event: scene", "event: pulse"]
    scene = codec.from_json(events[0][1].removeprefix("data: ").encode(), Scene)
    assert scene.items == picture_of(hub.world, detailed=True).items
    assert "machine" in scene.drawing
    assert list(hub.opened) == ["a", "b"]


async def test_detail_that_does_not_exist_is_refused_by_name(client: Client) -> None:
    response = await client.get("/topology.json?detail=much")
    assert (response.status, "much" in (await response.json())["message"]) == (400, True)


async def test_trace_is_asked_of_the_node_where_it_begins(client: Client) -> None:
    body: dict[str, Any] = {"node": "n", "question": {"source": "web.1", "target": "db", "protocol": "tcp"}}
    found = await (await client.post("/trace", json=body)).json()
    assert (found["source"], found["target"]) == ("n", "db")
    body["question"]["target"] = "nobody"
    lost = await client.post("/trace", json=body)
    assert (lost.status, await lost.json()) == (404, {"message": "nobody is called nobody"})
    body["more"] = 1
    assert (await client.post("/trace", json=body)).status == 400
