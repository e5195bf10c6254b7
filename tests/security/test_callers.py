"""What the cluster port lets callers do: by what they show, and by how much they take up. Real TLS on loopback."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from port_rig import LOOPBACK, Agent, Swarm, eventually, open_swarm

from hivemesh.agent.identity import Identity
from hivemesh.agent.join import join
from hivemesh.clock import ManualClock
from hivemesh.control import server as cluster_port
from hivemesh.control.door import Door, Pace
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.model.ids import PayloadID, new_id
from hivemesh.model.node import Node, NodeSpec
from hivemesh.model.secret import PayloadSpec, Secret
from hivemesh.model.service import ContainerSpec, FileTarget, SecretReference, TaskSpec
from hivemesh.model.task import TaskState, TaskStatus
from hivemesh.pki import MANAGER_NAME, Authority, client_context, make_request, server_context, unverified_context
from hivemesh.wire import codec
from hivemesh.wire.control import CLOSE_MALFORMED, CLOSE_REMOVED, Hello, JoinRequest, Report, TaskReport

FOR_ANYBODY = {("GET", "/v1/ca"), ("POST", "/v1/join")}
FOR_MANAGERS = {("POST", "/v1/manager"), ("POST", "/v1/tell")}
FOR_MEMBERS = {
    ("POST", "/v1/renew"), ("POST", "/v1/leave"), ("POST", "/v1/attach"), ("POST", "/v1/detach"),
    ("POST", "/v1/logs/{id}"), ("POST", "/v1/examine"), ("POST", "/v1/examined"), ("GET", "/v1/members"),
    ("POST", "/v1/traced"), ("POST", "/v1/inspect"), ("POST", "/v1/inspected"), ("POST", "/v1/feed/{id}"),
    ("GET", "/v1/networks"), ("GET", "/v1/networks/{ref}"), ("GET", "/v1/session"),
}  # fmt: skip


def routes(swarm: Swarm) -> set[tuple[str, str]]:
    """Method and path of everything that is served."""
    found = ((route.method, route.resource) for route in swarm.server._app().router.routes())
    return {(method, resource.canonical) for method, resource in found if method != "HEAD" and resource is not None}


async def ask(swarm: Swarm, context: ssl.SSLContext, method: str, path: str, body: bytes = b"{}") -> tuple[int, str]:
    """Status and body of one request."""
    async with aiohttp.ClientSession() as http:
        url = f"https://{swarm.manager}{path}".replace("{id}", "x").replace("{ref}", "x")
        async with http.request(method, url, ssl=context, server_hostname=MANAGER_NAME, data=body) as answer:
            return answer.status, await answer.text()


def shown(swarm: Swarm, directory: Path, **signed: object) -> ssl.SSLContext:
    """The settings of a caller whose certificate says what `signed` does."""
    authority = signed.pop("authority", None) or Authority(swarm.cluster.ca_cert, swarm.cluster.ca_key)
    assert isinstance(authority, Authority)
    request = make_request()
    said: dict[str, Any] = {"node_id": new_id(), "cluster_id": swarm.cluster.id, "role": "worker", "now": time.time()}
    path = directory / f"{new_id()}.pem"
    path.write_text(authority.sign(request.csr, **(said | signed)) + request.key)
    return client_context(swarm.cluster.ca_cert, path)


@asynccontextmanager
async def session_of(swarm: Swarm, identity: Identity) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A session held by hand."""
    async with aiohttp.ClientSession() as http:
        url = f"https://{swarm.manager}/v1/session"
        async with http.ws_connect(url, ssl=identity.client_context(), server_hostname=MANAGER_NAME) as ws:
            yield ws


async def test_every_route_is_closed_to_who_shows_no_certificate(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        assert routes(swarm) == FOR_ANYBODY | FOR_MANAGERS | FOR_MEMBERS
        context = client_context(swarm.cluster.ca_cert)
        for method, path in FOR_MANAGERS | FOR_MEMBERS:
            status, said = await ask(swarm, context, method, path)
            assert (path, status) == (path, 403)
            assert "a node certificate of this swarm is needed" in said


async def test_workers_cannot_call_what_is_for_managers(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        identity = await swarm.join("n1")
        for method, path in FOR_MANAGERS:
            status, said = await ask(swarm, identity.client_context(), method, path)
            assert (path, status) == (path, 403)
            assert "is no manager of this swarm" in said


@pytest.mark.parametrize(("certificate", "spec"), [("manager", "worker"), ("worker", "manager")])
async def test_a_manager_is_who_both_certificate_and_store_call_one(
    tmp_path: Path, certificate: str, spec: str
) -> None:
    """One that was demoted has its old certificate still; one that is to be promoted has no other yet."""
    async with open_swarm(tmp_path) as swarm:
        node = Node(id=new_id(), spec=NodeSpec(role=spec))  # type: ignore[arg-type]
        await swarm.tables.update(lambda tx: tx.put(node))
        context = shown(swarm, tmp_path, node_id=node.id, role=certificate)
        for method, path in FOR_MANAGERS:
            assert (await ask(swarm, context, method, path))[0] == 403


async def test_certificates_of_removed_nodes_and_other_swarms_open_nothing(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        identity = await swarm.join("n1")
        node = identity.facts.node_id
        other_swarm = shown(swarm, tmp_path, node_id=node, cluster_id="another")
        assert (await ask(swarm, other_swarm, "GET", "/v1/networks"))[0] == 403
        await swarm.tables.update(lambda tx: tx.delete(swarm.node(node)))
        for method, path in FOR_MANAGERS | FOR_MEMBERS:
            status, said = await ask(swarm, identity.client_context(), method, path)
            assert (path, status) == (path, 403)
            assert "was removed from this swarm" in said


@pytest.mark.parametrize("wrong", ["another root", "expired", "not yet valid"])
async def test_certificates_that_do_not_hold_end_the_connection(tmp_path: Path, wrong: str) -> None:
    async with open_swarm(tmp_path) as swarm:
        node, now = (await swarm.join("n1")).facts.node_id, time.time()
        signed: dict[str, dict[str, object]] = {
            "another root": {"authority": Authority.create(now)},
            "expired": {"now": now - 100, "lifetime": 50.0},
            "not yet valid": {"now": now + 9000},
        }
        context = shown(swarm, tmp_path, node_id=node, role="manager", **signed[wrong])
        with pytest.raises(aiohttp.ClientError):
            await ask(swarm, context, "GET", "/v1/ca")


async def test_a_worker_cannot_stand_in_for_a_manager(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        worker = await swarm.join("n1")
        posing = server_context(worker.certificate, swarm.cluster.ca_cert)
        listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=posing)
        async with listening:
            with pytest.raises(ssl.SSLCertVerificationError, match="swarm-manager"):
                await asyncio.open_connection(
                    "127.0.0.1", listening.sockets[0].getsockname()[1],
                    ssl=client_context(worker.ca), server_hostname=MANAGER_NAME,
                )  # fmt: skip


async def test_a_replayed_join_makes_another_node_and_takes_nothing_from_the_first(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        asked = JoinRequest(token=swarm.cluster.worker_token, csr=make_request().csr, addr="127.0.0.1", hostname="n1")
        context = client_context(swarm.cluster.ca_cert)
        answers = [await ask(swarm, context, "POST", "/v1/join", codec.to_json(asked)) for _ in range(2)]
        assert [status for status, _ in answers] == [200, 200]
        first, second = (msgspec.json.decode(said)["node_id"] for _, said in answers)
        assert first != second
        assert swarm.node(first).spec == swarm.node(second).spec == NodeSpec(role="worker")


async def test_a_name_that_would_forge_log_lines_is_refused(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        for name in ("n1\nall is well", "n" * 254):
            with pytest.raises(Invalid, match="invalid hostname"):
                await join([swarm.manager], swarm.cluster.worker_token, data_dir=tmp_path / "n1", addr=LOOPBACK,
                           vtep=LOOPBACK, listen="", hostname=name)  # fmt: skip
        assert not swarm.tables.view.all(Node)


async def test_secrets_reach_only_the_node_that_runs_what_uses_them(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent, other = await swarm.agent("n1"), await swarm.agent("n2")
        secret = Secret(id=PayloadID(new_id()), spec=PayloadSpec(name="s", data=b"only for n1"))
        await swarm.tables.update(lambda tx: tx.put(secret))
        uses = SecretReference(secret_id=secret.id, secret_name="s", file=FileTarget(name="s"))
        spec = TaskSpec(container_spec=ContainerSpec(image="web", secrets=(uses,)))
        task = await swarm.put_task(agent.node, spec=spec)
        await eventually(lambda: f"secret/{secret.id}" in agent.session.view)
        await swarm.put_task(other.node)
        await eventually(lambda: any(key.startswith("task/") for key in other.session.view))
        assert not {f"secret/{secret.id}", f"task/{task.id}"} & other.session.view.keys()


async def test_reports_on_tasks_of_others_change_nothing(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent: Agent = await swarm.agent("n1")
        theirs = await swarm.put_task(agent.node)
        rogue = await swarm.join("n2")
        async with session_of(swarm, rogue) as ws:
            hello = Hello(description=swarm.node(agent.node).description, vtep=ip_address("192.0.2.254"))
            await ws.send_bytes(codec.pack(hello))
            await ws.receive()
            own = await swarm.put_task(rogue.facts.node_id)
            failed = TaskStatus(state=TaskState.FAILED, err="x" * 10_000)
            await ws.send_bytes(codec.pack(Report(tasks=(
                TaskReport(task=theirs.id, status=failed), TaskReport(task=own.id, status=failed),
            ))))  # fmt: skip
            await eventually(lambda: swarm.task(own.id).status.state == TaskState.FAILED)
            assert len(swarm.task(own.id).status.err) == 4096
            assert swarm.task(theirs.id).status == theirs.status


async def test_a_running_session_ends_when_its_node_is_removed(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        identity = await swarm.join("n2")
        async with session_of(swarm, identity) as ws:
            hello = Hello(description=swarm.node(agent.node).description, vtep=ip_address("192.0.2.254"))
            await ws.send_bytes(codec.pack(hello))
            await ws.receive()
            await swarm.tables.update(lambda tx: tx.delete(swarm.node(identity.facts.node_id)))
            async with asyncio.timeout(5):
                while not ws.closed:
                    await ws.receive()
            assert ws.close_code == CLOSE_REMOVED


async def test_a_session_cannot_take_the_data_path_address_of_a_connected_node(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        known = swarm.node(agent.node)
        assert known.vtep is not None
        async with session_of(swarm, await swarm.join("n2")) as ws:
            await ws.send_bytes(codec.pack(Hello(description=known.description, vtep=known.vtep)))
            await ws.receive()
            assert ws.close_code == 4410
        assert swarm.node(agent.node).vtep == known.vtep


async def test_frames_without_sense_and_bodies_without_end_are_refused(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        identity = await swarm.join("n1")
        async with session_of(swarm, identity) as ws:
            await ws.send_bytes(b"\xc1" * 100)
            await ws.receive()
            assert ws.close_code == CLOSE_MALFORMED
        context = client_context(swarm.cluster.ca_cert)
        assert (await ask(swarm, context, "POST", "/v1/join", b"x" * (cluster_port.MAX_BODY + 1)))[0] == 413


async def test_who_shows_nothing_is_sent_away_in_time(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with door(tmp_path, strangers=9, patience=0.3) as (port, _):
        with caller(port) as silent:  # not even TLS
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=unverified_context())
            writer.write(b"GET /v1/ca")
            async with asyncio.timeout(5):
                assert await loop.sock_recv(silent, 1) == b""
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()


async def test_a_flood_drives_out_itself_and_members_get_in(tmp_path: Path) -> None:
    async with door(tmp_path, strangers=4, patience=60) as (port, member):
        with contextlib.ExitStack() as stack:
            elsewhere = stack.enter_context(caller(port, "127.0.0.9"))
            flood = [stack.enter_context(caller(port)) for _ in range(12)]
            await eventually(lambda: sum(map(has_ended, flood)) >= 9)
            for _ in range(5):  # who has shown a certificate counts no more
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=member, server_hostname=MANAGER_NAME
                )
                writer.write(b"hello\n")
                assert await reader.readline() == b"hello\n"
                writer.close()
            assert not has_ended(elsewhere)


def caller(port: int, address: str = "127.0.0.1") -> socket.socket:
    """Connected, and silent."""
    sock = socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
    sock.setblocking(False)
    return sock


def has_ended(sock: socket.socket) -> bool:
    """Whether the other side has hung up."""
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_joins_at_once_are_bounded_and_come_back_with_time() -> None:
    clock = ManualClock()
    pace = Pace(clock, most=3, rate=2.0)
    for _ in range(3):
        pace.take()
    with pytest.raises(Unavailable, match="more than 3 nodes join at once: try again"):
        pace.take()
    clock.advance(0.5)
    pace.take()
    with pytest.raises(Unavailable):
        pace.take()


@asynccontextmanager
async def door(directory: Path, *, strangers: int, patience: float) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """One that leads to an echo: its port, and the settings of a member."""

    def certified(role: str) -> Path:
        request = make_request()
        path = directory / f"{role}.pem"
        text = authority.sign(request.csr, node_id="n", cluster_id="c", role=role, now=time.time())  # type: ignore[arg-type]
        path.write_text(text + request.key)
        return path

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    def serve() -> asyncio.BaseProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo)

    authority = Authority.create(time.time())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = server_context(certified("manager"), authority.certificate)
        opened = Door(serve, context, strangers=strangers, patience=patience)
        running = asyncio.create_task(opened.run([listener]))
        try:
            yield listener.getsockname()[1], client_context(authority.certificate, certified("worker"))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
