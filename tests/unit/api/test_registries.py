"""Services pinned to a digest, and credentials for registries, as the docker CLI and other clients send them."""

import base64
import hashlib
import json

from api_harness import NoRegistries, manager_api

from hivemesh.model.errors import NotFound
from hivemesh.model.secret import Credential
from hivemesh.registry.client import MANIFESTS, Image, Unauthorized
from hivemesh.registry.reference import Reference
from hivemesh.wire.registryauth import RegistryAuth, decode, encode

JSON = "Content-Type: application/json"
ME = RegistryAuth(username="me", password="correct-horse")
DIGEST = "sha256:" + hashlib.sha256(b"image").hexdigest()


class OneRegistry(NoRegistries):
    """Knows `team/web`, and gives it to `ME`."""

    async def describe(self, reference: Reference, auth: RegistryAuth) -> Image:
        if reference.path != "team/web":
            raise NotFound(f"no such image in the registry: {reference}")
        if auth != ME:
            raise Unauthorized("the registry wants a login")
        return Image(MANIFESTS[0], DIGEST, 7, ({"architecture": "amd64", "os": "linux"},))


class OpenRegistry(OneRegistry):
    """As that, to everybody."""

    async def describe(self, reference: Reference, auth: RegistryAuth) -> Image:
        return await super().describe(reference, ME)


async def test_an_image_is_described_as_its_registry_does() -> None:
    async with manager_api() as api:
        api.machine.registries = OneRegistry()
        status, _, said = await api.http("GET", "/distribution/team/web/json", b"", f"X-Registry-Auth: {encode(ME)}")
        assert (status, said["Descriptor"]) == (200, {"mediaType": MANIFESTS[0], "digest": DIGEST, "size": 7})
        assert said["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
        for path, header, expected in (
            ("team/web", "", 401),
            ("team/other", encode(ME), 404),
            ("Team/a/b/C", "", 400),
            ("team/web", "rubbish!", 400),
        ):
            status, _, said = await api.http("GET", f"/distribution/{path}/json", b"", f"X-Registry-Auth: {header}")
            assert (status, bool(said["message"])) == (expected, True)
        api.machine.registries = NoRegistries()
        assert (await api.http("GET", "/distribution/team/web/json"))[0] == 503


async def test_the_cli_pins_a_service_to_the_digest() -> None:
    async with manager_api() as api:
        api.machine.registries = OpenRegistry()
        await api.docker("service", "create", "-d", "--name=web", "r.example/team/web:1.2")
        shown = json.loads(await api.docker("service", "inspect", "web"))[0]
        container = shown["Spec"]["TaskTemplate"]["ContainerSpec"]
        assert container["Image"] == f"r.example/team/web:1.2@{DIGEST}"
        unknown = await api.run("docker", "service", "create", "-d", "--name=other", "r.example/nosuch")
        assert unknown.code == 0
        assert "could not be accessed on a registry" in unknown.err


async def test_credentials_are_kept_for_the_nodes_and_shown_to_nobody() -> None:
    async with manager_api() as api:
        spec = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "team/web"}}}
        manager = api.machine.manager
        assert manager is not None
        tables = manager.tables

        async def send(path: str, auth: RegistryAuth) -> str:
            header = f"X-Registry-Auth: {encode(auth) or 'e30='}"
            status, _, said = await api.http("POST", path, json.dumps(spec).encode(), JSON, header)
            assert status in (200, 201), said
            return str(said.get("ID", ""))

        def kept() -> RegistryAuth:
            found = tables.view.get(Credential, service)
            assert found is not None
            return decode(found.spec.data.decode())

        async def update(auth: RegistryAuth, source: str = "") -> None:
            version = (await api.client.get("/services/web"))["Version"]["Index"]
            await send(f"/services/web/update?version={version}&registryAuthFrom={source}", auth)

        service = await send("/services/create", ME)
        assert kept() == ME
        everything = str([await api.http("GET", path) for path in ("/services", "/services/web", "/tasks", "/secrets")])
        assert "correct-horse" not in everything
        assert base64.b64encode(b"correct-horse").decode() not in everything
        other = RegistryAuth(identitytoken="token")
        await update(other)
        assert kept() == other
        await update(RegistryAuth(), "spec")
        assert kept() == other
        await update(RegistryAuth(), "previous-spec")
        assert kept() == ME
        path = "/services/web/update?version=1&registryAuthFrom=x"
        assert (await api.http("POST", path, json.dumps(spec).encode(), JSON))[0] == 400
        await api.client.delete("/services/web")
        assert not tables.view.all(Credential)
