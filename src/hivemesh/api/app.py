"""The Docker Engine API: routes, versions, headers, and errors as status codes.

Every route is served with and without a version prefix. What concerns the swarm is answered here; what concerns
containers and images goes to the engine beside us (`passthrough`).
"""

import logging
import re
from collections.abc import Awaitable, Callable

from aiohttp import web

import hivemesh
from hivemesh.api import (
    attached,
    containers,
    distribution,
    doctor,
    events,
    feeds,
    logs,
    networks,
    nodes,
    openapi,
    passthrough,
    secrets,
    services,
    snapshots,
    swarm,
    system,
    tasks,
    topology,
    trace,
)
from hivemesh.api.errors import ApiError, status_of
from hivemesh.api.http import LOCAL, MAX_BODY, MAX_VERSION, MIN_VERSION, message, version_text
from hivemesh.api.local import LocalNode
from hivemesh.model.errors import HivemeshError

log = logging.getLogger("hivemesh.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PREFIX = re.compile(r"/v(\d+)\.(\d+)(?=/)")
HEADERS = {
    "Server": f"Docker/{hivemesh.__version__} (linux)",
    "Api-Version": version_text(MAX_VERSION),
    "Ostype": "linux",
    "Docker-Experimental": "false",
}


def create_app(local: LocalNode) -> web.Application:
    """The application for one node; the daemon serves it on a unix socket."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors, _versions])
    app[LOCAL] = local
    app.on_response_prepare.append(_headers)
    passthrough.setup(app)
    events.setup(app)
    for module in (
        system,
        openapi,
        swarm,
        snapshots,
        nodes,
        services,
        distribution,
        logs,
        secrets,
        tasks,
        networks,
        trace,
        topology,
        doctor,
        feeds,
        events,
        attached,
        containers,
        passthrough,
    ):
        for route in module.routes:
            assert isinstance(route, web.RouteDef)
            for prefix in ("", r"/v{version:\d+\.\d+}"):
                app.router.add_route(route.method, prefix + route.path, route.handler, **route.kwargs)
    return app


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return message(error.status, error.message)
    except HivemeshError as error:
        return message(status_of(error), str(error))
    except web.HTTPNotFound:
        return message(404, "page not found")
    except web.HTTPMethodNotAllowed:
        return message(405, "method not allowed")
    except web.HTTPRequestEntityTooLarge:
        return message(413, f"the request's body is larger than {MAX_BODY // 2**20} MiB")
    except web.HTTPException as error:
        return message(error.status, error.reason)
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        return message(500, f"internal error: {type(error).__name__}: {error}")


@web.middleware
async def _versions(request: web.Request, handler: Handler) -> web.StreamResponse:
    if found := PREFIX.match(request.path):
        version = int(found[1]), int(found[2])
        if version < MIN_VERSION:
            text = (
                f"client version {version_text(version)} is too old. Minimum supported API version is "
                f"{version_text(MIN_VERSION)}, please upgrade your client to a newer version"
            )
            return message(400, text)
        if version > MAX_VERSION:
            text = (
                f"client version {version_text(version)} is too new. Maximum supported API version is "
                f"{version_text(MAX_VERSION)}"
            )
            return message(400, text)
    request.app[events.HUB].follow(request.app[LOCAL].manager)
    return await handler(request)
