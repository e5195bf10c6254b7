"""Asking a registry about an image (OCI distribution specification, 1.1): nothing is pulled.

A registry that wants to know who asks says how: with a name and password, or with a token that another server gives
for these. The answer to `HEAD` carries the digest; the body is read too, since it tells the platforms.
"""

import hashlib
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from hivemesh.model.errors import Forbidden, HivemeshError, NotFound, Unavailable
from hivemesh.registry.reference import DEFAULT_DOMAIN, Reference
from hivemesh.registry.settings import is_insecure
from hivemesh.wire.registryauth import RegistryAuth

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
HOSTS = {DEFAULT_DOMAIN: "registry-1.docker.io"}
TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)
LARGEST = 4 << 20
"""Bytes of a manifest (the specification's limit) or of an image's configuration."""
CLIENT_ID = "hivemesh"
T = TypeVar("T")
PLATFORM = ("architecture", "os", "os.version", "os.features", "variant")


class Unauthorized(Forbidden):
    """The registry wants other credentials, or some."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a name stands for. Platforms are dicts of the OCI's fields."""

    media_type: str
    digest: str
    size: int
    platforms: tuple[dict[str, Any], ...]


class Registries:
    """All registries, as this machine reaches them."""

    async def describe(self, reference: Reference, auth: RegistryAuth) -> Image:
        """Raises `NotFound`, `Unauthorized` or `Unavailable`."""
        return await self._ask(reference, auth, f"about {reference}", _Conversation.describe)

    async def login(self, domain: str, auth: RegistryAuth) -> None:
        """Returns when the registry lets in who shows `auth`. Raises `Unauthorized` or `Unavailable`."""
        await self._ask(Reference(domain, ""), auth, f"who {auth.username!r} is", _Conversation.enter)

    async def _ask(
        self, reference: Reference, auth: RegistryAuth, what: str, ask: Callable[["_Conversation"], Awaitable[T]]
    ) -> T:
        schemes = ("https", "http") if is_insecure(reference.domain) else ("https",)
        failures: list[str] = []
        for scheme in schemes:
            connector = aiohttp.TCPConnector(ssl=_unverified() if len(schemes) > 1 else True)
            async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector, trust_env=True) as http:
                try:
                    return await ask(_Conversation(http, scheme, reference, auth))
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    failures.append(_words(error))
        raise Unavailable(f"cannot ask the registry {reference.domain} {what}: {'; '.join(failures)}")


class _Conversation:
    """About one image, or with an empty path about who may come in."""

    def __init__(self, http: aiohttp.ClientSession, scheme: str, reference: Reference, auth: RegistryAuth) -> None:
        self._http = http
        self._reference = reference
        self._auth = auth
        self._base = f"{scheme}://{HOSTS.get(reference.domain, reference.domain)}/v2/{reference.path}"
        self._headers: dict[str, str] = {}

    async def describe(self) -> Image:
        accepted = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}
        answer, data = await self._get(f"/manifests/{self._reference.wanted}", accepted)
        digest = answer.get("Docker-Content-Digest") or f"sha256:{hashlib.sha256(data).hexdigest()}"
        said = _decoded(data)
        kind = said.get("mediaType") or answer.get("Content-Type", "").partition(";")[0].strip()
        if kind in INDEXES:
            platforms = [entry.get("platform") for entry in said.get("manifests", ())]
        elif kind in MANIFESTS:
            _, config = await self._get(f"/blobs/{said['config']['digest']}", {})
            platforms = [_decoded(config)]
        else:
            raise Unavailable(f"the registry {self._reference.domain} answers with {kind}, which is no image")
        return Image(kind, digest, len(data), tuple(_platform(found) for found in platforms if found))

    async def enter(self) -> None:
        await self._get("", {})

    async def _get(self, path: str, headers: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
        for attempt in (1, 2):
            async with self._http.get(self._base + path, headers={**headers, **self._headers}) as response:
                if response.status == 401 and attempt == 1:
                    self._headers = await self._authorization(response.headers.getall("WWW-Authenticate", []))
                    continue
                data = await _body(response)
                if response.status < 300:
                    return response.headers, data
                raise self._refusal(response.status, data)
        raise AssertionError("a second attempt always ends")

    def _refusal(self, status: int, data: bytes) -> HivemeshError:
        words = "; ".join(str(entry.get("message", "")) for entry in _decoded(data).get("errors", ()) or ())
        if status in (401, 403) and not self._reference.path:
            return Unauthorized(
                f"unauthorized: the registry {self._reference.domain} does not let {self._auth.username!r} in"
                + (f": {words}" if words else ": check the name, and the password or token")
            )
        if status in (401, 403):
            return Unauthorized(f"the registry does not give {self._reference}: {words or 'it wants a login'}")
        if status == 404:
            return NotFound(f"no such image in the registry: {self._reference}" + (f" ({words})" if words else ""))
        return Unavailable(f"the registry {self._reference.domain} answers {status} to {self._reference}: {words}")

    async def _authorization(self, challenges: list[str]) -> dict[str, str]:
        """The header that answers what the registry wants; none when we cannot."""
        if self._auth.registrytoken:
            return {"Authorization": f"Bearer {self._auth.registrytoken}"}
        for challenge in challenges:
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "basic" and self._auth.username:
                return {"Authorization": self._login()}
            if scheme.lower() == "bearer":
                return {"Authorization": f"Bearer {await self._token(_parameters(rest))}"}
        return {}

    def _login(self) -> str:
        return aiohttp.encode_basic_auth(self._auth.username, self._auth.password, encoding="utf-8")

    async def _token(self, asked: dict[str, str]) -> str:
        """Of the server that the registry names, which must be as safe as the registry itself."""
        realm = asked.get("realm", "")
        if urlsplit(realm).scheme != "https" and not self._base.startswith("http://"):
            raise Unavailable(f"the registry {self._reference.domain} names {realm!r} for logins, which is not HTTPS")
        path = self._reference.path
        scope = asked.get("scope") or (f"repository:{path}:pull" if path else "")
        parameters = {"service": asked.get("service", ""), "client_id": CLIENT_ID} | ({"scope": scope} if scope else {})
        if self._auth.identitytoken:
            form = parameters | {"grant_type": "refresh_token", "refresh_token": self._auth.identitytoken}
            request = self._http.post(realm, data=form)
        else:
            login = {"Authorization": self._login()} if self._auth.username else None
            request = self._http.get(realm, params=parameters, headers=login)
        async with request as response:
            data = await _body(response)
            if response.status >= 300:
                raise self._refusal(response.status, data)
        said = _decoded(data)
        return str(said.get("token") or said.get("access_token") or "")


async def _body(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise aiohttp.ClientPayloadError(f"the answer has more than {LARGEST >> 20} MiB")
    return b"".join(parts)


def _parameters(text: str) -> dict[str, str]:
    """`realm="…",service="…"` (RFC 9110, 11.2)."""
    return {key.lower(): quoted or plain for key, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', text)}


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _platform(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in PLATFORM if found.get(key)}


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
