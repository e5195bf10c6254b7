"""`/events`: what changed in the swarm, as it happens, and what the engine reports beside it."""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web

from hivemesh.agent.repairs import Repair
from hivemesh.api import passthrough
from hivemesh.api.http import LOCAL, Filters, any_of, filters_of, labels_match, local_of
from hivemesh.model.errors import HivemeshError, Invalid
from hivemesh.model.ids import NodeID
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.secret import Config, Secret
from hivemesh.model.service import Service
from hivemesh.store.api import Event
from hivemesh.store.tables import PREFIX
from hivemesh.wire import codec
from hivemesh.wire.engine import objects

if TYPE_CHECKING:
    from hivemesh.control.manager import Manager  # a worker never loads the managers' part

log = logging.getLogger("hivemesh.api")
routes = web.RouteTableDef()

BACKLOG = 256
"""Events kept for `since`, as Docker keeps."""
READER_LIMIT = 1024
"""Events a slow reader may be behind before it is cut off."""

ENGINE_GRACE = 2.0
"""Seconds that the engine has, after `until`, to tell what happened before."""

FILTERS = (
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret",
    "service", "type", "volume",
)  # fmt: skip
SWARM_TYPES = {"service", "node", "network", "secret", "config"}
ENGINE_FILTERS = {"container", "event", "image", "label", "type", "volume"}
"""What Podman's event filters know; with any other the engine has nothing to say."""
ENGINE_TYPES = {"container", "image", "volume", "network"}

Watched = Service | Node | Network | Secret | Config
KINDS: dict[str, type[Watched]] = {PREFIX[kind]: kind for kind in (Service, Node, Network, Secret, Config)}
Message = dict[str, Any]


def facts(value: Watched, leader: NodeID | None = None) -> dict[str, str]:
    """What events tell of an object; the pairs that change are shown with their old and new values."""
    match value:
        case Service():
            told = {"image": value.spec.task_template.container_spec.image}
            if value.spec.mode.name == "replicated":
                told["replicas"] = str(value.spec.replicas)
            if value.update_status is not None:
                told["updatestate"] = value.update_status.state
            return told
        case Node():
            told = {"availability": value.spec.availability, "role": value.spec.role, "state": value.state}
            if value.manager_addr:
                told["reachability"] = objects.reachability(value)
                told["leader"] = str(value.id == leader).lower()
            return told
        case Network() | Secret() | Config():
            return {}


def name_of(value: Watched) -> str:
    return (value.spec.name or value.description.hostname) if isinstance(value, Node) else value.spec.name


Leaders = tuple[NodeID | None, NodeID | None]
"""Who led before a change, and who leads after it."""


def describe(
    identifier: str, old: Watched | None, new: Watched | None, leaders: Leaders = (None, None)
) -> tuple[str, Message] | None:
    """The action and actor for one object's change; None when nothing a user asked for or sees has changed."""
    known = new or old
    if known is None:
        return None
    attributes = {"name": name_of(known)}
    if old and new:
        before, after = facts(old, leaders[0]), facts(new, leaders[1])
        if old.spec == new.spec and before == after:
            return None
        for key in after | before:
            if before.get(key) != after.get(key):
                attributes |= {f"{key}.old": before[key]} if key in before else {}
                attributes |= {f"{key}.new": after[key]} if key in after else {}
    action = "create" if old is None else "remove" if new is None else "update"
    return action, {"ID": identifier, "Attributes": attributes}


class _Engines(dict[str, Any]):
    """The engine's own, which has passed the filters there."""


def message(kind: str, action: str, actor: Message, stamp: float, scope: str = "swarm") -> Message:
    return {
        "Type": kind,
        "Action": action,
        "Actor": actor,
        "scope": scope,
        "time": int(stamp),
        "timeNano": int(stamp * 1e9),
    }


class Hub:
    """Turns commits into events, keeps the last ones, and hands new ones to whoever listens."""

    def __init__(self) -> None:
        self._manager: Manager | None = None
        self._seen: dict[str, Watched] = {}
        self._leader: NodeID | None = None
        self._backlog: deque[Message] = deque(maxlen=BACKLOG)
        self._readers: set[asyncio.Queue[Message | None]] = set()

    def tell_local(self, action: str, network: str, attributes: dict[str, str]) -> None:
        """Something happened to a network of this node."""
        actor = {"ID": network, "Attributes": attributes}
        self._publish(message("network", action, actor, time.time(), "local"))

    def tell_repair(self, node: str, name: str, repair: Repair) -> None:
        """Somebody undid something of ours in this machine's kernel, and it is right again."""
        attributes = {
            "name": name,
            "namespace": repair.namespace or "host",
            "count": str(repair.count),
            "repaired": repair.words,
        }
        actor = {"ID": node, "Attributes": attributes}
        self._publish(message("node", "repair", actor, time.time(), "local"))

    def follow(self, manager: "Manager | None") -> None:
        """Watch this manager's commits from now on; called with each request, acts once per manager."""
        if manager is None:
            return
        if manager is self._manager:
            self._see_leader(manager)
            return
        self._manager, self._leader = manager, manager.leader
        view = manager.tables.view
        present: list[Watched] = [*view.all(Service), *view.all(Node), *view.all(Network)]
        present += [*view.all(Secret), *view.all(Config)]
        self._seen = {PREFIX[type(value)] + value.id: value for value in present}
        manager.tables.on_commit(lambda events: self._committed(manager, events))

    def _committed(self, manager: "Manager", events: Iterable[Event]) -> None:
        if manager is not self._manager:
            return
        for event in events:
            prefix, _, identifier = event.key.partition("/")
            kind = KINDS.get(prefix + "/")
            if kind is None:
                continue
            new = codec.unpack(event.value, kind) if event.value is not None else None
            old = self._seen.pop(event.key, None)
            if new is not None:
                self._seen[event.key] = new
            if change := describe(identifier, old, new, (self._leader, self._leader)):
                self._publish(message(kind.__name__.lower(), *change, time.time()))
        self._see_leader(manager)

    def _see_leader(self, manager: "Manager") -> None:
        """Another manager leads: nothing in the store tells, but the first commit of the new one comes at once."""
        leaders = self._leader, manager.leader
        if leaders[0] == leaders[1] or leaders[1] is None:
            return
        self._leader = leaders[1]
        for identifier in leaders:
            node = self._seen.get(f"{PREFIX[Node]}{identifier}")
            if node is not None and (change := describe(node.id, node, node, leaders)):
                self._publish(message("node", *change, time.time()))

    def _publish(self, event: Message) -> None:
        self._backlog.append(event)
        for reader in tuple(self._readers):
            try:
                reader.put_nowait(event)
            except asyncio.QueueFull:
                self._readers.discard(reader)
                with suppress(asyncio.QueueEmpty):
                    reader.get_nowait()
                reader.put_nowait(None)

    @contextmanager
    def listen(self) -> Iterator[tuple[list[Message], asyncio.Queue[Message | None]]]:
        """The backlog, and a queue of what comes; None in the queue means that the reader was too slow."""
        queue: asyncio.Queue[Message | None] = asyncio.Queue(READER_LIMIT)
        self._readers.add(queue)
        try:
            yield list(self._backlog), queue
        finally:
            self._readers.discard(queue)


HUB = web.AppKey("hub", Hub)


def setup(app: web.Application) -> None:
    app[HUB] = Hub()

    async def listen(app: web.Application) -> None:
        node = app[LOCAL]
        node.local_networks.on_event(app[HUB].tell_local)
        node.local_networks.repairs.on_repair(lambda r: app[HUB].tell_repair(node.node_id or "", node.name, r))

    app.on_startup.append(listen)


def _moment(request: web.Request, name: str) -> float | None:
    text = request.query.get(name, "")
    if text in ("", "0"):
        return None
    try:
        return float(text)
    except ValueError:
        raise Invalid(f"invalid {name} {text!r}: expected unix seconds") from None


def matches(event: Message, filters: Filters) -> bool:
    """Whether a swarm event passes; ids and names match by prefix."""
    actor = event["Actor"]
    attributes = actor["Attributes"]
    for kind in FILTERS:
        if kind not in filters or kind in ("event", "label", "scope", "type"):
            continue
        if kind != event["Type"]:
            return False
        if not any_of(filters, kind, lambda v: actor["ID"].startswith(v) or attributes.get("name", "").startswith(v)):
            return False
    return (
        any_of(filters, "type", event["Type"].__eq__)
        and any_of(filters, "event", event["Action"].__eq__)
        and any_of(filters, "scope", event["scope"].__eq__)
        and labels_match(filters, attributes)
    )


@routes.get("/events")
async def events(request: web.Request) -> web.StreamResponse:
    filters = filters_of(request, FILTERS)
    since, until = _moment(request, "since"), _moment(request, "until")
    now = local_of(request).clock.now()
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    with request.app[HUB].listen() as (backlog, queue):
        await response.prepare(request)
        for event in backlog:
            stamp = event["timeNano"] / 1e9
            if since is not None and since <= stamp and (until is None or stamp <= until) and matches(event, filters):
                await _send(response, event)
        feed = asyncio.create_task(_feed(request, filters, queue, until, now), name="events")
        try:
            while (fresh := await queue.get()) is not None:
                if isinstance(fresh, _Engines) or matches(fresh, filters):
                    await _send(response, fresh)
        finally:
            feed.cancel()
            await asyncio.gather(feed, return_exceptions=True)
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, event: Message) -> None:
    await response.write(codec.to_json(event) + b"\n")


async def _feed(
    request: web.Request, filters: Filters, queue: asyncio.Queue[Message | None], until: float | None, now: float
) -> None:
    """The engine's events into the queue, and the end of the stream once `until` has come."""
    over = until is not None and until <= now
    engine = asyncio.create_task(_from_engine(request, filters, queue, until, over), name="engine events")
    try:
        if over:
            await asyncio.wait([engine], timeout=ENGINE_GRACE)
        elif until is not None:
            await asyncio.sleep(until - now)
        else:
            await engine
            return
        await queue.put(None)
    finally:
        engine.cancel()
        await asyncio.gather(engine, return_exceptions=True)


async def _from_engine(
    request: web.Request, filters: Filters, queue: asyncio.Queue[Message | None], until: float | None, over: bool
) -> None:
    """Put the engine's events into the same queue for as long as it talks.

    Podman is never given `until`: with one it keeps back what happened before.
    """
    types, scopes = filters.get("type"), filters.get("scope")
    if filters.keys() - ENGINE_FILTERS - {"scope"} or (scopes and "local" not in scopes):
        return
    if types and not (set(types) & ENGINE_TYPES):
        return
    passed = {name: values for name, values in filters.items() if name in ENGINE_FILTERS and name != "type"}
    query = {"stream": "false" if over else "true"}
    if request.query.get("since", "0") != "0":
        query["since"] = request.query["since"]
    if passed:
        query["filters"] = json.dumps(passed)
    try:
        async with passthrough.stream(request, f"/events?{urlencode(query)}") as content:
            async for event in _messages(content):
                late = until is not None and event.get("timeNano", 0) > until * 1e9
                if not late and (not types or event.get("Type") in types):
                    await queue.put(_Engines({"scope": "local"} | event))
    except (HivemeshError, OSError) as error:
        log.info("events without the engine's: %s", error)


async def _messages(content: Any) -> AsyncIterator[Message]:
    async for line in content:
        if line.strip():
            with suppress(ValueError):
                yield json.loads(line)
