"""The cluster port: where nodes join, renew, leave and hold their sessions. HTTPS and one web socket per node.

Only `GET /v1/ca` and `POST /v1/join` answer a caller without a certificate; what managers ask each other takes a
manager's. Any manager answers, but for sessions, which are the leader's: the others say who that is. Every refusal has
a `Refusal` as its body.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from hivemesh.clock import Clock
from hivemesh.control import attachments
from hivemesh.control.dispatcher import Dispatcher
from hivemesh.control.door import Door, Pace
from hivemesh.control.join import admit, refresh, role_of
from hivemesh.control.manager import Manager
from hivemesh.control.rotation import roots
from hivemesh.model.addr import host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Conflict, Forbidden, HivemeshError, Invalid, NotFound, Unavailable, Unsupported
from hivemesh.model.ids import NodeID
from hivemesh.model.node import PARTING, Node
from hivemesh.pki import LiveContext, Peer, peer_of
from hivemesh.store.tables import Transaction
from hivemesh.wire import codec
from hivemesh.wire.control import (
    CLOSE_CONFLICT,
    CLOSE_MALFORMED,
    CLOSE_REMOVED,
    LEADER_HEADER,
    MAX_FRAME,
    REFUSAL_HEADER,
    AttachRequest,
    DetachRequest,
    JoinRequest,
    ManagerReply,
    ManagerRequest,
    MembersReply,
    Refusal,
    RenewRequest,
    TellRequest,
)
from hivemesh.wire.doctor import Told
from hivemesh.wire.trace import Answered, ExamineRequest, Traced

log = logging.getLogger("hivemesh.server")

MAX_BODY = 64 * 1024
"""Bytes of a request; a certificate request has about 400."""
MAX_FOUND = 16 * 1024 * 1024
"""Bytes of what a member of the swarm was asked to find: a trace has some 25 KiB for each way."""
CLOSE_TIMEOUT = 2.0
"""Seconds a peer has to answer our goodbye."""
STATUS = (
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Unsupported, 501),
    (Unavailable, 503),
    (HivemeshError, 400),
)
NO_LEADER = (
    "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the "
    "managers are online."
)
LEAVE_TIMEOUT = 10.0
"""Seconds a manager that leaves waits until the others can do without it."""
WILDCARDS = ("0.0.0.0", "::", "*", "")
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Colleagues(Protocol):
    """How this manager's store takes in another manager."""

    async def expect(self, store: str, has_etcd: bool) -> None:
        """Raises `Unavailable` when there cannot be one (yet) that runs with that `--store` and may have an etcd."""
        ...

    async def admit(self, node: Node, request: ManagerRequest) -> ManagerReply:
        """Raises `Unavailable`, also when the caller should try again."""
        ...

    async def members(self) -> tuple[NodeID, ...]:
        """The nodes whose servers hold the store. Raises `Unavailable` without a majority."""
        ...


class Elsewhere(Unavailable):
    """Another manager does this: `leader` is its host:port."""

    def __init__(self, leader: str) -> None:
        super().__init__(f"sessions are held by the leader, {leader}")
        self.leader = leader


class ClusterServer:
    """Serves the cluster port of one manager.

    `certificate` is the PEM file with this manager's certificate and key, which `password` opens, `listen` host:port;
    the wildcard of either family means both. `dispatcher` is there while this manager leads.
    """

    def __init__(
        self,
        manager: Manager,
        dispatcher: Dispatcher | None = None,
        *,
        certificate: Path,
        listen: str,
        clock: Clock,
        colleagues: Colleagues | None = None,
        password: Callable[[], bytes] = bytes,
    ) -> None:
        self._manager = manager
        self._tables = manager.tables
        self._colleagues = colleagues
        self.dispatcher = dispatcher
        self._certificate = certificate
        self._password = password
        self._listen = listen
        self._clock = clock
        self._sockets: list[socket.socket] = []
        self._channels: set[_SocketChannel] = set()
        self._joins = Pace(clock)
        self.ready = asyncio.Event()

    @property
    def port(self) -> int:
        """The port we listen on, once `ready`."""
        return int(self._sockets[0].getsockname()[1])

    async def run(self) -> None:
        """Serve until cancelled. Raises `Unavailable` when the port cannot be had."""
        live = LiveContext(self._certificate, self._password, lambda: roots(self._tables.view.cluster))
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=CLOSE_TIMEOUT)
        try:
            self._sockets = _bind(self._listen)
            await runner.setup()
            assert runner.server is not None  # there is one after `setup`
            log.info("cluster port on %s", self._listen)
            self.ready.set()
            await Door(runner.server, live.context).run(self._sockets)
        finally:
            await runner.cleanup()
            for sock in self._sockets:
                sock.close()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[_refuse], client_max_size=MAX_BODY)
        app.on_shutdown.append(self._hang_up)
        app.add_routes(
            [
                web.get("/v1/ca", self._ca),
                web.post("/v1/join", self._join),
                web.post("/v1/renew", self._renew),
                web.post("/v1/leave", self._leave),
                web.post("/v1/attach", self._attach),
                web.post("/v1/detach", self._detach),
                web.post("/v1/logs/{id}", self._receive_logs),
                web.post("/v1/feed/{id}", self._receive_feed),
                web.post("/v1/examine", self._examine),
                web.post("/v1/examined", self._examined),
                web.post("/v1/traced", self._traced),
                web.post("/v1/inspect", self._inspect),
                web.post("/v1/inspected", self._inspected),
                web.post("/v1/manager", self._become_manager),
                web.get("/v1/members", self._members),
                web.post("/v1/tell", self._tell),
                web.get("/v1/networks", self._networks),
                web.get("/v1/networks/{ref}", self._network),
                web.get("/v1/session", self._session),
            ]
        )
        return app

    async def _ca(self, request: web.Request) -> web.Response:
        return web.Response(text=self._tables.view.cluster.ca_cert, content_type="application/x-pem-file")

    async def _join(self, request: web.Request) -> web.Response:
        asked = await _body(request, JoinRequest)
        role = role_of(self._tables.view.cluster, asked.token)
        self._joins.take()  # after a look at the token: who has none uses up nothing
        if role == "manager":
            await self._colleagues_here().expect(asked.store, asked.etcd)
        reply = await admit(self._tables, asked, now=self._clock.now(), caller=request.remote or "")
        log.info("node %s (%s) joined from %s", reply.node_id, asked.hostname or "no name", request.remote)
        return _json(reply)

    async def _renew(self, request: web.Request) -> web.Response:
        node, _ = self._member(request)
        asked = await _body(request, RenewRequest)
        return _json(refresh(self._tables.view.cluster, node, asked, now=self._clock.now()))

    async def _leave(self, request: web.Request) -> web.Response:
        _, peer = self._member(request)

        def mark(tx: Transaction) -> None:
            node = tx.get(Node, peer.node_id)
            if node is not None:
                message, now = "the node left the swarm", self._clock.now()
                spec = msgspec.structs.replace(node.spec, role="worker")
                tx.put(msgspec.structs.replace(node.gone_down(message, now, PARTING).with_spec(spec), updated=now))
            attachments.drop(tx, peer.node_id)

        await self._tables.update(mark)
        await self._without(peer.node_id)
        log.info("node %s left the swarm", peer.node_id)
        if self.dispatcher is not None:
            await self.dispatcher.close(peer.node_id, CLOSE_REMOVED, "the node left the swarm")
        return web.Response(status=204)

    async def _without(self, leaving: NodeID) -> None:
        """Until a manager that leaves is no part of the store any more. Raises `Unavailable` when that takes long."""
        tables = self._tables
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                while (node := tables.view.get(Node, leaving)) is not None and node.acting_role == "manager":
                    await tables.changed(tables.view.revision)
        except TimeoutError:
            raise Unavailable(f"the managers could not do without node {leaving} in {LEAVE_TIMEOUT:g} s") from None

    def _colleagues_here(self) -> Colleagues:
        if self._colleagues is None:
            raise Unavailable("this manager cannot have another one beside it")
        return self._colleagues

    async def _become_manager(self, request: web.Request) -> web.Response:
        node = self._fellow(request)
        return _json(await self._colleagues_here().admit(node, await _body(request, ManagerRequest)))

    async def _members(self, request: web.Request) -> web.Response:
        self._member(request)
        return _json(MembersReply(nodes=await self._colleagues_here().members()))

    async def _tell(self, request: web.Request) -> web.Response:
        self._fellow(request)
        asked = await _body(request, TellRequest)
        if self.dispatcher is None or not await self.dispatcher.tell(asked.node, asked.frame):
            raise NotFound(f"node {asked.node} has no session here")
        return web.Response(status=204)

    async def _attach(self, request: web.Request) -> web.Response:
        _, peer = self._member(request)
        return _json(await self._manager.attach(peer.node_id, await _body(request, AttachRequest)))

    async def _detach(self, request: web.Request) -> web.Response:
        _, peer = self._member(request)
        await self._manager.detach(peer.node_id, (await _body(request, DetachRequest)).task)
        return web.Response(status=204)

    async def _receive_logs(self, request: web.Request) -> web.Response:
        """Lines that this manager asked the node for; of any length, as they come."""
        _, peer = self._member(request)
        if self._manager.logs is None:
            raise Forbidden("this manager reads no logs")
        try:
            await self._manager.logs.receive(request.match_info["id"], peer.node_id, request.content.iter_any())
        except ValueError as error:
            raise Invalid(f"malformed logs: {error}") from None
        return web.Response(status=204)

    async def _receive_feed(self, request: web.Request) -> web.Response:
        """Of the node's traffic, as long as somebody reads it."""
        _, peer = self._member(request)
        if self._manager.feeds is None:
            raise Forbidden("this manager reads no feeds")
        try:
            await self._manager.feeds.receive(request.match_info["id"], peer.node_id, request.content.iter_any())
        except ValueError as error:
            raise Invalid(f"malformed feed: {error}") from None
        return web.Response(status=204)

    async def _examine(self, request: web.Request) -> web.Response:
        """Members may see what lies on a packet's way; it is as little a secret as networks are."""
        self._member(request)
        if self._manager.examiner is None:
            raise Unavailable("this manager cannot ask other nodes yet: try again in a moment")
        asked = await _body(request, ExamineRequest)
        return _json(await self._manager.examiner.examine(asked.vtep, asked.examination))

    async def _examined(self, request: web.Request) -> web.Response:
        _, peer = self._member(request)
        if self._manager.examiner is None:
            raise Forbidden("this manager asked nobody")
        answered = await _found(request, Answered)
        self._manager.examiner.answered(answered.id, peer.node_id, answered.examined)
        return web.Response(status=204)

    async def _traced(self, request: web.Request) -> web.Response:
        _, peer = self._member(request)
        if self._manager.examiner is None:
            raise Forbidden("this manager asked nobody")
        self._manager.examiner.traced(peer.node_id, await _found(request, Traced))
        return web.Response(status=204)

    async def _inspect(self, request: web.Request) -> web.Response:
        """The leader's: two rounds of probes at a time would disturb each other, and it has the sessions."""
        self._member(request)
        if self.dispatcher is None:
            raise self._elsewhere()
        if self._manager.inspector is None:
            raise Unavailable("this manager cannot ask other nodes yet: try again in a moment")
        return _json(await self._manager.inspector.inspect())

    async def _inspected(self, request: web.Request) -> web.Response:
        _, peer = self._member(request)
        if self._manager.inspector is None:
            raise Forbidden("this manager asked nobody")
        told = await _found(request, Told)
        self._manager.inspector.answered(told.id, peer.node_id, told.facts)
        return web.Response(status=204)

    async def _networks(self, request: web.Request) -> web.Response:
        """Members may look at the networks; what they see is no secret of managers."""
        self._member(request)
        return _json(self._manager.insights())

    async def _network(self, request: web.Request) -> web.Response:
        self._member(request)
        return _json(self._manager.insight(request.match_info["ref"]))

    async def _session(self, request: web.Request) -> web.StreamResponse:
        _, peer = self._member(request)
        if self.dispatcher is None:
            raise self._elsewhere()
        ws = web.WebSocketResponse(max_msg_size=MAX_FRAME, compress=False, timeout=CLOSE_TIMEOUT)
        await ws.prepare(request)
        channel = _SocketChannel(ws)
        self._channels.add(channel)
        try:
            await self.dispatcher.serve(peer.node_id, channel, _frames(ws), request.remote or "")
        except Invalid as error:
            log.warning("session of node %s closed: %s", peer.node_id, error)
            await channel.close(CLOSE_MALFORMED, str(error))
        except Conflict as error:
            log.warning("session of node %s closed: %s", peer.node_id, error)
            await channel.close(CLOSE_CONFLICT, str(error))
        except Forbidden as error:
            await channel.close(CLOSE_REMOVED, str(error))
        except ConnectionError:
            pass  # the agent went away; the monitor gives it its grace
        finally:
            self._channels.discard(channel)
            await channel.close(WSCloseCode.GOING_AWAY, "the manager stops")
        return ws

    def _elsewhere(self) -> Unavailable:
        leader = self._tables.view.get(Node, self._manager.leader) if self._manager.leader else None
        if leader is None or not leader.manager_addr or self._manager.leader == self._manager.me:
            return Unavailable(NO_LEADER)
        return Elsewhere(leader.manager_addr)

    async def hang_up(self, reason: str) -> None:
        """End all sessions: their agents look for the leader."""
        await asyncio.gather(*(channel.close(WSCloseCode.GOING_AWAY, reason) for channel in self._channels))

    async def _hang_up(self, _: web.Application) -> None:
        await self.hang_up("the manager stops")

    def _member(self, request: web.Request) -> tuple[Node, Peer]:
        """The node whose certificate the caller showed. Raises `Forbidden` when it is no member (any more)."""
        certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
        peer = peer_of(certificate or {})
        node = self._tables.view.get(Node, peer.node_id)
        if node is None or peer.cluster_id != self._tables.view.cluster.id:
            raise Forbidden(
                f"node {peer.node_id} was removed from this swarm: leave it with `swarm leave` and join again"
            )
        return node, peer

    def _fellow(self, request: web.Request) -> Node:
        """The manager who calls. Raises `Forbidden` when its certificate or the store says that it is none."""
        node, peer = self._member(request)
        if peer.role != "manager" or node.spec.role != "manager":
            raise Forbidden(f"node {node.id} is no manager of this swarm")
        return node


class _SocketChannel:
    """A web socket as the dispatcher sees it."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self._ws = ws

    async def send(self, data: bytes) -> None:
        try:
            await self._ws.send_bytes(data)
        except RuntimeError as error:  # closed by us a moment ago
            raise ConnectionResetError(str(error)) from error

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._ws.close(code=code, message=reason.encode()[:123])  # RFC 6455: the most there is room for


async def _frames(ws: web.WebSocketResponse) -> AsyncIterator[bytes]:
    async for message in ws:
        if message.type is not WSMsgType.BINARY:
            raise Invalid("frames are binary MessagePack")
        yield message.data


@web.middleware
async def _refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    leader = ""
    try:
        return await handler(request)
    except HivemeshError as error:
        status = next(status for kind, status in STATUS if isinstance(error, kind))
        message = str(error)
        if isinstance(error, Elsewhere):
            leader, status = error.leader, 421
    except ConnectionError as error:  # in the middle of what it was sending: nobody hears this
        status, message = 400, str(error)
    except web.HTTPException as error:
        status, message = error.status, f"{error.reason}: {request.method} {request.path}"
    header = message.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")
    response = _json(Refusal(message=message), status=status)
    response.headers[REFUSAL_HEADER] = header[:500]
    if leader:
        response.headers[LEADER_HEADER] = leader
    return response


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=codec.to_json(value), status=status, content_type="application/json")


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return codec.from_json(await request.read(), kind)
    except msgspec.MsgspecError as error:
        raise Invalid(f"malformed request: {error}") from None


async def _found(request: web.Request, kind: type[T]) -> T:
    return await _body(request.clone(client_max_size=MAX_FOUND), kind)


def _bind(listen: str) -> list[socket.socket]:
    """One listening socket per family asked for. Raises `Unavailable` when the address is not ours or taken."""
    host, port = parse_host_port(listen, DEFAULT_LISTEN_PORT, "listen address")
    hosts = ["0.0.0.0", "::"] if host in WILDCARDS else [host]
    sockets: list[socket.socket] = []
    try:
        for name in hosts:
            family = socket.AF_INET6 if ipaddress.ip_address(name).version == 6 else socket.AF_INET
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                if sockets:  # a machine without IPv6
                    continue
                raise
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((name, port))
            sock.listen(128)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise Unavailable(f"cannot listen on {host_port(host, port)}: {error.strerror}") from error
    return sockets
