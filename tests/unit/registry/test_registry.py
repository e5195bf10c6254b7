"""A registry of our own on loopback, which wants to know who asks."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from hivemesh.model.errors import Invalid, NotFound, Unavailable
from hivemesh.registry.client import INDEXES, MANIFESTS, Registries, Unauthorized
from hivemesh.registry.reference import Reference, familiar, parse, registry_of
from hivemesh.registry.settings import is_insecure
from hivemesh.wire.registryauth import RegistryAuth

ME = RegistryAuth(username="me", password="secret")
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()
DIGEST = "sha256:" + "d" * 64
CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "config": {}}).encode()
MANIFEST = json.dumps(
    {"schemaVersion": 2, "mediaType": MANIFESTS[0], "config": {"digest": "sha256:" + "c" * 64}, "layers": []}
).encode()
INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "manifests": [
            {"digest": "sha256:1", "platform": {"architecture": "arm64", "os": "linux", "variant": "v8"}},
            {"digest": "sha256:2", "platform": {"architecture": "amd64", "os": "linux"}},
        ],
    }
).encode()


@asynccontextmanager
async def registry(login: str = "") -> AsyncIterator[str]:
    """Its host:port; `login` is how it wants to know who asks: not at all, basic or bearer."""

    async def answer(request: web.Request) -> web.Response:
        wanted = {"": None, "basic": BASIC, "bearer": "Bearer token"}[login]
        if wanted and request.headers.get("Authorization") != wanted:
            realm = f"http://{request.host}/token"
            challenge = {
                "basic": 'Basic realm="here"',
                "bearer": f'Bearer realm="{realm}",service="here",scope="repository:team/web:pull"',
            }[login]
            errors = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
            return web.json_response(errors, status=401, headers={"WWW-Authenticate": challenge})
        what = request.match_info["what"]
        if what == "manifests/latest":
            assert set(request.headers["Accept"].split(", ")) == {*INDEXES, *MANIFESTS}
            digest = {"Docker-Content-Digest": "sha256:" + hashlib.sha256(MANIFEST).hexdigest()}
            return web.Response(body=MANIFEST, content_type=MANIFESTS[0], headers=digest)
        if what == "manifests/many":
            return web.Response(body=INDEX, content_type=INDEXES[1])
        if what.startswith("blobs/"):
            return web.Response(body=CONFIG)
        return web.json_response({"errors": [{"message": "manifest unknown"}]}, status=404)

    async def token(request: web.Request) -> web.Response:
        assert request.query["scope"] == "repository:team/web:pull"
        if request.headers.get("Authorization") != BASIC:
            return web.json_response({"errors": [{"message": "who are you"}]}, status=401)
        return web.json_response({"token": "token"})

    app = web.Application()

    async def enter(request: web.Request) -> web.Response:
        if login and request.headers.get("Authorization") != {"basic": BASIC, "bearer": "Bearer guest"}[login]:
            realm = f"http://{request.host}/enter"
            challenge = {"basic": 'Basic realm="here"', "bearer": f'Bearer realm="{realm}",service="here"'}[login]
            return web.json_response({}, status=401, headers={"WWW-Authenticate": challenge})
        return web.json_response({})

    async def guest(request: web.Request) -> web.Response:
        assert "scope" not in request.query
        if request.headers.get("Authorization") != BASIC:
            return web.json_response({"errors": [{"message": "who are you"}]}, status=401)
        return web.json_response({"token": "guest"})

    app.add_routes([web.get("/v2/", enter), web.get("/enter", guest)])
    app.add_routes([web.get("/token", token), web.get("/v2/team/web/{what:.+}", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("login", ["", "basic", "bearer"])
async def test_digest_and_platform_of_an_image_are_found(login: str) -> None:
    async with registry(login) as host:
        image = await Registries().describe(parse(f"{host}/team/web"), ME)
    assert image.digest == "sha256:" + hashlib.sha256(MANIFEST).hexdigest()
    assert (image.media_type, image.size) == (MANIFESTS[0], len(MANIFEST))
    assert image.platforms == ({"architecture": "amd64", "os": "linux"},)


async def test_an_image_of_many_platforms_names_them_all_by_the_digest_of_its_list() -> None:
    async with registry() as host:
        image = await Registries().describe(parse(f"{host}/team/web:many"), RegistryAuth())
    assert image.digest == "sha256:" + hashlib.sha256(INDEX).hexdigest()
    assert image.media_type == INDEXES[1]
    assert [platform["architecture"] for platform in image.platforms] == ["arm64", "amd64"]


async def test_refusals_say_what_the_registry_said() -> None:
    async with registry("bearer") as host:
        with pytest.raises(Unauthorized, match="who are you"):
            await Registries().describe(parse(f"{host}/team/web"), RegistryAuth())
    async with registry("basic") as host:
        with pytest.raises(Unauthorized, match="authentication required"):
            await Registries().describe(parse(f"{host}/team/web"), RegistryAuth(username="me", password="wrong"))
        with pytest.raises(NotFound, match="manifest unknown"):
            await Registries().describe(parse(f"{host}/team/web:none"), ME)
    with pytest.raises(Unavailable, match=f"cannot ask the registry {host}"):
        await Registries().describe(parse(f"{host}/team/web"), ME)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("nginx", Reference("docker.io", "library/nginx")),
        ("team/web:1.0", Reference("docker.io", "team/web", "1.0")),
        ("docker.io/nginx", Reference("docker.io", "library/nginx")),
        ("index.docker.io/a/b", Reference("docker.io", "a/b")),
        ("localhost/whoami:2", Reference("localhost", "whoami", "2")),
        ("r.example:5000/a/b/c", Reference("r.example:5000", "a/b/c")),
        ("[::1]:5000/a", Reference("[::1]:5000", "a")),
        ("nginx:1@sha256:" + "a" * 64, Reference("docker.io", "library/nginx", "1", "sha256:" + "a" * 64)),
    ],
)
def test_names_are_understood_as_docker_does(text: str, reference: Reference) -> None:
    assert parse(text) == reference


@pytest.mark.parametrize("text", ["", "Nginx", "a b", "a:b:c", "a/", "/a", "a@sha256:xyz", "a..b", "-a"])
def test_what_names_no_image_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="invalid reference format"):
        parse(text)


def test_plain_http_is_for_this_machine_and_what_podman_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registries.conf"
    file.write_text(
        '[[registry]]\nlocation = "r.example:5000"\ninsecure = true\n[[registry]]\nlocation = "s.example"\n'
    )
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(file))
    for domain in ("localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "r.example:5000"):
        assert is_insecure(domain)
    for domain in ("docker.io", "s.example", "r.example", "192.0.2.1:5000"):
        assert not is_insecure(domain)
    file.write_text("not toml")
    assert not is_insecure("r.example:5000")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nginx", "nginx:latest"),
        ("docker.io/library/nginx", "nginx:latest"),
        ("docker.io/team/web:1", "team/web:1"),
        ("localhost/whoami", "localhost/whoami:latest"),
        ("r.example:5000/library/web", "r.example:5000/library/web:latest"),
        (f"web:1@{DIGEST}", f"web:1@{DIGEST}"),
        (f"web@{DIGEST}", f"web@{DIGEST}"),
        ("Not A Name", "Not A Name"),
        ("a" * 64, "a" * 64),
    ],
)
def test_name_of_an_image_is_written_as_dockers_clients_do(text: str, expected: str) -> None:
    assert familiar(text) == expected


@pytest.mark.parametrize("login", ["basic", "bearer"])
async def test_login_succeeds_with_the_right_password_only(login: str) -> None:
    async with registry(login) as domain:
        await Registries().login(domain, ME)
        with pytest.raises(Unauthorized, match=f"the registry {domain} does not let 'me' in"):
            await Registries().login(domain, RegistryAuth(username="me", password="other"))
    async with registry() as domain:
        await Registries().login(domain, RegistryAuth())
    with pytest.raises(Unavailable, match="who 'me' is"):
        await Registries().login("127.0.0.1:1", ME)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("", "docker.io"), ("https://index.docker.io/v1/", "docker.io"), ("http://r.example:5000/v2/", "r.example:5000"),
     ("[2001:db8::1]:5000", "[2001:db8::1]:5000")],
)  # fmt: skip
def test_address_of_a_registry_is_read_as_clients_write_it(address: str, expected: str) -> None:
    assert registry_of(address) == expected
    with pytest.raises(Invalid, match="expected a host name"):
        registry_of("a b")
