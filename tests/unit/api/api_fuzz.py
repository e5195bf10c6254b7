"""Requests made up from the API's own description: mostly well formed, often absurd."""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

WORLD = {
    "services": ("web", "once"),
    "networks": ("front", "ingress"),
    "secrets": ("key",),
    "configs": ("conf",),
    "nodes": ("n1",),
}
"""Names of what a test made before, so that requests meet something."""
NAMES = tuple(name for names in WORLD.values() for name in names)

ODD = (
    "", "0", "-1", "a=b", "=", "a", "x" * 64, "x" * 5000, "../../etc", "/", "/run", "{{.Node.ID}}", "{{", "*", "[",
    "\x00", "\u00fc\u4e2d", "10.0.0.0/8", "10.9.0.0/24", "10.9.0.1", "::1/128", "0.0.0.0/0", "node.role==manager",
    "node.id!=x", "node.labels.a == b", "engine.labels.", "CMD", "CMD-SHELL", "NONE", "tcp", "overlay", "swarm",
    "local", "true", "1e3", "default", "host", "none", "bridge", "SIGTERM", "eth0", "127.0.0.1:2377",
    "localhost/whoami", "container", "CAP_SYS_ADMIN",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    2,
    -1,
    80,
    443,
    4096,
    65535,
    65536,
    10**6,
    10**9,
    5 * 10**9,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
)
"""Counts, ports, nanoseconds, and the edges of what a machine's integers hold."""

WORDS = st.sampled_from((*NAMES, *ODD)) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
INTEGERS = st.sampled_from(NUMBERS) | st.integers(-3, 300)
FLOATS = st.sampled_from((0.0, 0.5, 1.0, -0.1, 1e9, 1e308)) | st.floats(0, 1)
ANYTHING: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | INTEGERS | WORDS | st.just([]) | st.just({}) | st.just([[{}]])
)


@dataclass(frozen=True, slots=True)
class Made:
    """A request; `version` CURRENT asks for the object's present version, which only the server knows."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def target(self, version: str) -> str:
        query = {name: version if value == CURRENT else value for name, value in self.query.items()}
        return self.path + ("?" + urlencode(query) if query else "")


CURRENT = "current"


def values(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema allows, and now and then something else. References are followed when a value is drawn."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: values(whole["components"]["schemas"][name], whole))
    if "anyOf" in schema:
        return st.one_of([values(choice, whole) for choice in schema["anyOf"]])
    if "enum" in schema:
        return _mostly(st.sampled_from(schema["enum"]))
    match schema.get("type"):
        case "object":
            known = {name: values(inner, whole) for name, inner in schema.get("properties", {}).items()}
            if known:
                return _some(known)
            inner = schema.get("additionalProperties")
            return st.dictionaries(WORDS, values(inner, whole) if isinstance(inner, dict) else ANYTHING, max_size=2)
        case "array":
            inner = schema.get("items")
            return _mostly(st.lists(values(inner, whole) if isinstance(inner, dict) else ANYTHING, max_size=3))
        case "string" if schema.get("contentEncoding") == "base64":
            return _mostly(st.binary(max_size=5).map(lambda data: b64encode(data).decode()))
        case "string":
            return _mostly(WORDS)
        case "integer":
            return _mostly(INTEGERS)
        case "number":
            return _mostly(FLOATS | INTEGERS)
        case "boolean":
            return _mostly(st.booleans())
        case "null":
            return st.none()
    return ANYTHING


@st.composite
def _some(draw: st.DrawFn, known: Mapping[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """An object with a few of its fields: with all of them, one would be wrong almost always."""
    names = draw(st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True))
    return {name: draw(known[name]) for name in names}


@st.composite
def _mostly(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> Any:
    """Something of another type, in one of twenty."""
    return draw(ANYTHING) if draw(st.integers(0, 19)) == 19 else draw(good)


@st.composite
def requests(draw: st.DrawFn, method: str, path: str, entry: Mapping[str, Any], whole: Mapping[str, Any]) -> Made:
    """A request for one operation of the description."""
    pattern = path
    query: dict[str, str] = {}
    ref = draw(_reference(path))
    for parameter in entry["parameters"]:
        name = parameter["name"]
        if parameter["in"] == "path":
            path = path.replace("{" + name + "}", quote(ref, safe=""))
        elif "content" in parameter:
            if draw(st.booleans()):
                schema = parameter["content"]["application/json"]["schema"]
                query[name] = (
                    draw(st.sampled_from(["{", "[]", "null", "1"]))
                    if draw(_rarely())
                    else _text(draw(values(schema, whole)))
                )
        elif name == "version":
            query[name] = CURRENT if not draw(_rarely()) else str(draw(INTEGERS))
        elif parameter.get("required") or draw(st.booleans()):
            query[name] = str(draw(values(parameter["schema"], whole)))
    body = None
    if "requestBody" in entry:
        schema = entry["requestBody"]["content"]["application/json"]["schema"]
        body = (
            draw(st.binary(max_size=20))
            if draw(_rarely())
            else _text(draw(_named(values(schema, whole), ref if "{ref}" in pattern else ""))).encode()
        )
    return Made(method.upper(), path, query, body)


@st.composite
def _named(draw: st.DrawFn, objects: st.SearchStrategy[Any], ref: str) -> Any:
    """Mostly with the name and image that can be, so that what else is in it gets looked at."""
    value = draw(objects)
    if isinstance(value, dict) and draw(st.integers(0, 9)):
        value["Name"] = ref if ref in NAMES else draw(st.sampled_from(("fresh", "other", *NAMES[:3])))
        template = value.get("TaskTemplate")
        if isinstance(template, dict) and isinstance(container := template.setdefault("ContainerSpec", {}), dict):
            container["Image"] = "localhost/whoami"
    return value


@st.composite
def _reference(draw: st.DrawFn, path: str) -> str:
    """Mostly something that is there."""
    there = WORLD.get(path.split("/")[1], NAMES)
    odd = st.sampled_from((*NAMES, "nosuch", "..", "%", "a/b", "\u00fc", "x" * 300, " ", "create"))
    return draw(st.sampled_from(there) if draw(st.integers(0, 3)) else odd)


def _rarely() -> st.SearchStrategy[bool]:
    return st.integers(0, 11).map(lambda number: number == 0)


def _text(value: Any) -> str:
    return json.dumps(value)
