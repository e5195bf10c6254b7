"""Reading requests and writing answers, the same way for every resource."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from hivemesh.agent.vault import LOCKED
from hivemesh.api.errors import INACTIVE, STARTING, WORKER
from hivemesh.api.local import LocalNode
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.wire import codec, registryauth
from hivemesh.wire.engine import strict

if TYPE_CHECKING:
    from hivemesh.control.manager import Manager  # a worker never loads the managers' part

MAX_VERSION = (1, 51)
"""The newest API version spoken. 1.52 changes events and `/system/df` without anything new for a swarm."""
MIN_VERSION = (1, 40)

MAX_BODY = 4 * 1024 * 1024
"""Bytes of JSON we read from a client; the largest service of Docker's own limits is far below."""

UPDATE_OPTIONS = {
    "version", "rollback", "registryAuthFrom", "rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey",
}  # fmt: skip
"""What the query of an update may have."""

LOCAL = web.AppKey("local", LocalNode)
Filters = dict[str, list[str]]


def version_text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def local_of(request: web.Request) -> LocalNode:
    return request.app[LOCAL]


def manager_of(request: web.Request) -> "Manager":
    """The managers' facade. Raises `Unavailable` in Docker's words on a node that has none."""
    local = local_of(request)
    if local.manager is not None:
        return local.manager
    if local.state == "inactive":
        raise Unavailable(INACTIVE)
    if local.state == "locked":
        raise Unavailable(LOCKED)
    raise Unavailable(STARTING if local.is_manager else WORKER)


def answer(value: Any, status: int = 200) -> web.Response:
    """`value` as JSON, with Docker's content type and newline."""
    return web.Response(body=codec.to_json(value) + b"\n", status=status, content_type="application/json")


def message(status: int, text: str) -> web.Response:
    """Docker's error body."""
    return answer({"message": text}, status)


async def body_of(request: web.Request, *, optional: bool = False) -> Any:
    """The JSON body. Raises `Invalid` for another content type, malformed JSON, or a missing body."""
    data = await request.read()
    if not data.strip():
        if optional:
            return {}
        raise Invalid("invalid JSON: the request has no body")
    if request.content_type != "application/json":
        raise Invalid(
            f"invalid content type {request.headers.get('Content-Type', '')!r}: the body must be application/json"
        )
    return strict.decode(data)


async def object_of(request: web.Request) -> dict[str, Any]:
    """The JSON body, an object. Raises `Invalid`, and as `body_of`."""
    body = await body_of(request)
    if not isinstance(body, dict):
        raise Invalid("invalid JSON: the body must be an object")
    return body


async def changed_spec(request: web.Request) -> Any:
    """The body of an update, without options: dockerode sends everything in the query and in the body."""
    body = await body_of(request)
    if not isinstance(body, dict):
        return body
    said = UPDATE_OPTIONS & request.query.keys()
    return {name: value for name, value in body.items() if name not in said}


def credential_of(request: web.Request) -> str:
    """What the client lets a registry be shown, checked; empty when it says nothing. Raises `Invalid`."""
    return registryauth.encode(registryauth.decode(request.headers.get("X-Registry-Auth", "")))


def flag(request: web.Request, name: str) -> bool:
    """A boolean of the query, as Docker reads it: anything but these is true."""
    return request.query.get(name, "").strip().lower() not in ("", "0", "no", "false", "none")


def version_of_object(request: web.Request) -> int:
    """`?version=` of an update: the `Version.Index` that the client has seen."""
    text = request.query.get("version", "")
    if not text.isdecimal():
        raise Invalid(f"invalid version {text!r}: give the object's Version.Index as ?version=")
    return int(text)


def filters_of(request: web.Request, known: Iterable[str]) -> Filters:
    """The `filters` of the query, in either encoding. Raises `Invalid` for a name not in `known`."""
    text = request.query.get("filters", "")
    if not text:
        return {}
    value = strict.decode(text.encode())
    if not isinstance(value, dict):
        raise Invalid("invalid filters: expected an object")
    allowed, result = set(known), {}
    for name, given in value.items():
        if name not in allowed:
            raise Invalid(f"invalid filter '{name}'")
        if isinstance(given, dict):  # {"name": {"web": true}}
            result[name] = [key for key, wanted in given.items() if wanted]
        elif isinstance(given, list) and all(isinstance(item, str) for item in given):  # before API 1.22
            result[name] = given
        else:
            raise Invalid(f"invalid filter '{name}': expected a list or an object")
    return result


def any_of(filters: Filters, name: str, test: Callable[[str], bool]) -> bool:
    """Whether one of the filter's values passes, or there is no such filter."""
    values = filters.get(name)
    return not values or any(test(value) for value in values)


def one_of(filters: Filters, name: str, known: Iterable[str]) -> None:
    """Raises `Invalid` in Docker's words for a value that the filter cannot have."""
    known = tuple(known)
    for value in filters.get(name, ()):
        if value not in known:
            raise Invalid(f"invalid filter: '{name}'='{value}': use {', '.join(known)}")


def truth_of(filters: Filters, name: str) -> bool | None:
    """The one value of a filter that is true or false; None without it. Raises `Invalid` in Docker's words."""
    values = filters.get(name)
    if not values:
        return None
    if len(values) > 1 or values[0] not in ("1", "true", "0", "false"):
        raise Invalid(f"invalid filter '{name}=[{' '.join(values)}]': use true or false")
    return values[0] in ("1", "true")


def labels_match(filters: Filters, labels: Mapping[str, str], name: str = "label") -> bool:
    """All values of a label filter: `key` must be there, `key=value` must be so."""
    for wanted in filters.get(name, ()):
        key, equals, value = wanted.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def pattern_match(filters: Filters, name: str, text: str) -> bool:
    """Unanchored regular expressions, as network filters are; an invalid one matches only itself."""

    def matches(pattern: str) -> bool:
        try:
            return pattern == text or re.search(pattern, text) is not None
        except re.error:
            return False

    return any_of(filters, name, matches)
