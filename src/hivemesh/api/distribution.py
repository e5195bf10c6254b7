"""`/distribution`: what a registry says of an image, to whose digest clients pin services; `/auth`: `docker login`.

Podman's own `/auth` heeds no registry that may be spoken to without TLS.
"""

from aiohttp import web

from hivemesh.api.errors import ApiError
from hivemesh.api.http import answer, body_of, credential_of, local_of
from hivemesh.registry.client import Unauthorized
from hivemesh.registry.reference import parse, registry_of
from hivemesh.wire import registryauth
from hivemesh.wire.engine import strict

routes = web.RouteTableDef()


@routes.get(r"/distribution/{name:.+}/json")
async def distribution(request: web.Request) -> web.Response:
    reference, auth = parse(request.match_info["name"]), registryauth.decode(credential_of(request))
    try:
        image = await local_of(request).registries.describe(reference, auth)
    except Unauthorized as error:
        raise ApiError(401, str(error)) from error
    descriptor = {"mediaType": image.media_type, "digest": image.digest, "size": image.size}
    return answer({"Descriptor": descriptor, "Platforms": list(image.platforms)})


@routes.post("/auth")
async def login(request: web.Request) -> web.Response:
    auth = strict.read(await body_of(request), registryauth.RegistryAuth, "AuthConfig")
    try:
        await local_of(request).registries.login(registry_of(auth.serveraddress), auth)
    except Unauthorized as error:
        raise ApiError(401, str(error)) from error
    return answer({"Status": "Login Succeeded", "IdentityToken": auth.identitytoken})
