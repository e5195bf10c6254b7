"""The node's web port: the topology page and the metrics. On loopback it answers anybody on this machine; opened
further, it speaks TLS and wants a token.

What stays true
- A page of another site gets nothing, also by a name that it makes lead to 127.0.0.1: a request must name this machine
  (`Host`), and what has a body must be JSON, which other sites cannot send without being allowed.
- Nothing here changes the swarm.
- When the port is taken, the node works all the same, and says so.
"""

import asyncio
import hmac
import ipaddress
import logging
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from aiohttp import web

from hivemesh.agent.private import refused, write_private
from hivemesh.clock import Clock
from hivemesh.config import DaemonConfig
from hivemesh.model.addr import parse_host_port
from hivemesh.model.errors import Conflict, Forbidden, HivemeshError, Invalid, NotFound, Unavailable
from hivemesh.pki.pages import page_certificate

log = logging.getLogger("hivemesh.web")

DEFAULT_PORT = 2378
"""Beside 2377, where the managers are."""
RETRY = 5.0
"""Seconds between attempts to get the port."""
PATIENCE = 1.0
"""Seconds that requests under way get when the daemon stops; streams never end by themselves."""
COOKIE = "hivemesh-token"
STATUS = {Invalid: 400, Forbidden: 403, NotFound: 404, Conflict: 409, Unavailable: 503}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Nothing is fetched from anywhere else, and no other page may show or read this one."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """Listens while `run` runs. `routes` are the paths it serves; their handlers may raise the errors of `model`."""

    def __init__(self, config: DaemonConfig, routes: Iterable[web.RouteDef], clock: Clock, *, name: str = "") -> None:
        """`name` is the machine's, by which it may be asked too."""
        self._config = config
        self._routes = tuple(routes)
        self._clock = clock
        self._name = name

    async def run(self) -> None:
        """Serve until cancelled. A port that cannot be had is waited for; the reason is logged once."""
        if not self._config.web:
            return
        said = ""
        while True:
            try:
                await self._serve()
            except HivemeshError as error:
                if str(error) != said:
                    log.warning("%s", error)
                said = str(error)
            await self._clock.sleep(RETRY)

    async def _serve(self) -> None:
        """Raises `Invalid` or `Unavailable` when it cannot."""
        host, port = parse_host_port(self._config.web, DEFAULT_PORT, "web address")
        token, context = "", None
        if not is_loopback(host):
            token, context = await asyncio.to_thread(self._secured, host)
        app = create_app(self._routes, names=(host, self._name), token=token)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=PATIENCE)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, ssl_context=context)
            try:
                await site.start()
            except OSError as error:
                raise Unavailable(
                    f"no web page and no metrics: cannot listen on {self._config.web}: {error.strerror or error}; "
                    "choose another with --web, or none with --web off"
                ) from error
            if context is not None:
                log.info("the page at %s wants the token in %s", self._config.web, self._directory / "token")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    @property
    def _directory(self) -> Path:
        return self._config.data_dir / "web"

    def _secured(self, host: str) -> tuple[str, ssl.SSLContext]:
        """The token and the TLS settings, both made when there are none yet. Raises `Unavailable`."""
        directory = self._directory
        certificate, key = self._config.web_certificate, self._config.web_key
        kept, path = directory / "token", directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = kept
            if not kept.exists():
                write_private(kept, secrets.token_urlsafe(24).encode() + b"\n")
            token = kept.read_text().strip()
            if certificate is None or key is None:
                certificate, key = directory / "certificate.pem", directory / "key.pem"
                if not (certificate.exists() and key.exists()):
                    path = key
                    made = page_certificate((host, self._name), self._clock.now())
                    write_private(key, made[1].encode())
                    write_private(certificate, made[0].encode())
        except OSError as error:
            raise refused(path, error) from error
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(
                f"no web page and no metrics: {certificate} and {key} are no certificate with its key: {error}; give "
                "both in PEM form with --web-certificate and --web-key"
            ) from error
        return token, context


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def create_app(routes: Iterable[web.RouteDef], *, names: Iterable[str] = (), token: str = "") -> web.Application:
    """The application. Without `token` only requests that name loopback or one of `names` are heard."""
    allowed = {"localhost", "127.0.0.1", "::1", *(name.lower() for name in names if name)}

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if token:
                _check_token(request, token)
            elif _host(request) not in allowed:
                raise Forbidden(f"{request.host!r} is not this machine: use 127.0.0.1, or localhost through a tunnel")
            if request.body_exists and request.content_type != "application/json":
                raise Forbidden("a body must be application/json")
            return await handler(request)
        except _Enter as entering:
            return entering.response
        except HivemeshError as error:
            status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
            if isinstance(error, _Unknown):
                status = 401
            return web.json_response({"message": str(error)}, status=status)
        except web.HTTPException as error:
            return web.json_response({"message": error.reason}, status=error.status)

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")

    app = web.Application(middlewares=[guarded], client_max_size=1 << 16)
    app.on_response_prepare.append(prepare)
    app.add_routes(tuple(routes))
    return app


class _Unknown(Forbidden):
    """Nobody we know."""


class _Enter(Exception):
    """The token came in the address: it goes on in a cookie, so that it stands in no address bar."""

    def __init__(self, response: web.Response) -> None:
        self.response = response


def _check_token(request: web.Request, token: str) -> None:
    """Raises `_Unknown` without the token, and `_Enter` when it came in the address."""
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    if _equal(request.query.get("token", ""), token):
        response = web.Response(status=303, headers={"Location": request.path})
        response.set_cookie(COOKIE, token, httponly=True, secure=True, samesite="Strict")
        raise _Enter(response)
    if not _equal(bearer or request.cookies.get(COOKIE, ""), token):
        raise _Unknown(
            "a token is needed: open https://ADDRESS/?token=TOKEN, or send `Authorization: Bearer TOKEN`; the token is "
            "in web/token in the data directory of this node"
        )


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _host(request: web.Request) -> str:
    """The name by which we are asked, without its port."""
    host = request.headers.get("Host", "").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
