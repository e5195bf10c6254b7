"""`/distribution`: what a registry says of an image. Clients pin services to the digest."""

from aiohttp import web

from hivemesh.api.errors import ApiError
from hivemesh.api.http import answer, credential_of, local_of
from hivemesh.registry import Unauthorized, parse
from hivemesh.wire import registryauth

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
