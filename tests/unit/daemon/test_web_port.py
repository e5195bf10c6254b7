"""The node's web port: who is heard, on loopback and beyond."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from hivemesh.clock import SystemClock
from hivemesh.config import DaemonConfig
from hivemesh.daemon.web import WebServer, create_app, is_loopback
from hivemesh.model.errors import NotFound
from hivemesh.pki.pages import page_certificate


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def echo(request: web.Request) -> web.Response:
    return web.json_response(await request.json())


async def lost(request: web.Request) -> web.Response:
    raise NotFound("nobody is called x")


ROUTES = (web.get("/", hello), web.post("/echo", echo), web.get("/lost", lost))


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(TestServer(create_app(ROUTES, names=("n1",)))) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost:2378", "127.0.0.1", "[::1]:2378", "N1:2378"])
async def test_request_that_names_this_machine_is_answered_and_nothing_may_be_fetched_elsewhere(
    client: TestClient[web.Request, web.Application], host: str
) -> None:
    response = await client.get("/", headers={"Host": host})
    assert response.status == 200
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


async def test_name_of_another_site_that_leads_here_is_refused(
    client: TestClient[web.Request, web.Application],
) -> None:
    response = await client.get("/", headers={"Host": "evil.example:2378"})
    assert response.status == 403
    assert "evil.example" in (await response.json())["message"]


async def test_body_that_other_sites_may_send_is_refused(client: TestClient[web.Request, web.Application]) -> None:
    refused = await client.post("/echo", data=b"{}", headers={"Content-Type": "text/plain"})
    assert refused.status == 403
    taken = await client.post("/echo", json={"a": 1})
    assert await taken.json() == {"a": 1}


async def test_errors_carry_their_words_and_status(client: TestClient[web.Request, web.Application]) -> None:
    response = await client.get("/lost")
    assert (response.status, await response.json()) == (404, {"message": "nobody is called x"})
    assert (await client.get("/nowhere")).status == 404


async def test_opened_further_only_who_has_the_token_is_answered() -> None:
    async with TestClient(TestServer(create_app(ROUTES, token="secret"))) as client:
        assert (await client.get("/", headers={"Host": "n1.example"})).status == 401
        assert (await client.get("/", headers={"Authorization": "Bearer wrong"})).status == 401
        heard = await client.get("/", headers={"Authorization": "Bearer secret", "Host": "n1.example"})
        assert heard.status == 200
        entering = await client.get("/?token=secret", allow_redirects=False)
        assert (entering.status, entering.headers["Location"]) == (303, "/")
        assert "HttpOnly" in entering.headers["Set-Cookie"]
        assert (await client.get("/", headers={"Cookie": "hivemesh-token=secret"})).status == 200


def test_token_and_certificate_are_made_once_for_this_owner_only(tmp_path: Path) -> None:
    server = WebServer(DaemonConfig(data_dir=tmp_path, web="192.0.2.1:0"), ROUTES, SystemClock(), name="n1")
    first, context = server._secured("192.0.2.1")
    assert isinstance(context, ssl.SSLContext)
    assert server._secured("192.0.2.1")[0] == first
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "web").iterdir()} == {
        "token": 0o600,
        "certificate.pem": 0o600,
        "key.pem": 0o600,
    }


async def test_page_certificate_is_for_the_names_it_was_made_for(tmp_path: Path) -> None:
    certificate, key = page_certificate(("127.0.0.1", "n1"), SystemClock().now())
    (tmp_path / "c.pem").write_text(certificate)
    (tmp_path / "k.pem").write_text(key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    trusting = ssl.create_default_context(cadata=certificate)
    server = TestServer(create_app(ROUTES, token="secret"), scheme="https")
    await server.start_server(ssl=context)
    try:
        async with aiohttp.ClientSession() as http:
            async with http.get(server.make_url("/"), ssl=trusting) as response:
                assert response.status == 401
    finally:
        await server.close()


def test_loopback_is_told_from_addresses_others_reach() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "n1"))
