"""Nodes join, hold sessions and leave over real TLS on loopback, on a real store."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import aiohttp
import msgspec
import pytest
from port_rig import LOOPBACK, Swarm, eventually, open_swarm

from hivemesh.agent import inquiry
from hivemesh.agent import join as join_module
from hivemesh.agent import session as session_module
from hivemesh.agent.identity import load
from hivemesh.agent.join import act_as_manager, join, leave, renew, tell, tell_traced
from hivemesh.control.examiner import Examiner
from hivemesh.model.addr import MAC, VNI
from hivemesh.model.cluster import Dispatcher
from hivemesh.model.errors import Forbidden, HivemeshError, Invalid, NotFound, Unavailable
from hivemesh.model.ids import EndpointID, NetworkID, NodeID
from hivemesh.model.network import Network, NetworkSpec, Subnet
from hivemesh.model.node import Node, NodeDescription, NodeSpec, Role
from hivemesh.model.task import Attachment, TaskState, TaskStatus
from hivemesh.pki import MANAGER_NAME, client_context, new_token
from hivemesh.wire import codec
from hivemesh.wire.control import FromManager, LogsUnwanted, TaskItem, TellRequest, TraceWanted
from hivemesh.wire.trace import Question, Trace, Traced


async def try_join(swarm: Swarm, token: str, *, remotes: list[str] | None = None) -> None:
    await join(
        remotes or [swarm.manager],
        token,
        data_dir=swarm.directory / "failing",
        addr=LOOPBACK,
        vtep=LOOPBACK,
        listen="",
    )


async def test_joined_node_gets_a_view_and_becomes_ready(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        node = swarm.node(agent.node)
        assert (node.state, node.addr, node.description.hostname) == ("ready", "127.0.0.1", "host")
        assert node.vtep == agent.session.identity.facts.vtep
        assert f"node/{agent.node}" in agent.session.view
        identity = load(tmp_path / "n1")
        assert identity is not None
        assert identity.facts.node_id == agent.node
        assert identity.certificate.stat().st_mode & 0o777 == 0o600


async def test_change_in_the_store_reaches_the_agent_as_a_delta(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent, other = await swarm.agent("n1"), await swarm.agent("n2")
        before = len(other.assigned)
        task = await swarm.put_task(agent.node, status=TaskStatus(state=TaskState.ASSIGNED))
        await eventually(lambda: f"task/{task.id}" in agent.session.view)
        assert len(other.assigned) == before  # nothing in it for the other
        await swarm.tables.update(lambda tx: tx.delete(swarm.task(task.id)))
        await eventually(lambda: f"task/{task.id}" not in agent.session.view)


async def test_reports_only_move_own_tasks_forward(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent, other = await swarm.agent("n1"), await swarm.agent("n2")
        task = await swarm.put_task(agent.node, status=TaskStatus(state=TaskState.ASSIGNED))
        other.session.report(task.id, TaskStatus(state=TaskState.FAILED))
        agent.session.report(task.id, TaskStatus(state=TaskState.RUNNING, container_id="c"))
        await eventually(lambda: swarm.task(task.id).status.state == TaskState.RUNNING)
        agent.session.report(task.id, TaskStatus(state=TaskState.PREPARING))
        await eventually(lambda: not agent.session._reports)
        await swarm.dispatcher.inbox.flushed()
        assert swarm.task(task.id).status == TaskStatus(state=TaskState.RUNNING, container_id="c")


async def test_many_reports_become_few_commits(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        tasks = [await swarm.put_task(agent.node, status=TaskStatus(state=TaskState.ASSIGNED)) for _ in range(20)]
        before = swarm.tables.view.revision
        for state in (TaskState.PREPARING, TaskState.READY, TaskState.STARTING, TaskState.RUNNING):
            for task in tasks:
                agent.session.report(task.id, TaskStatus(state=state))
            await asyncio.sleep(0)
        await eventually(lambda: all(swarm.task(t.id).status.state == TaskState.RUNNING for t in tasks))
        assert swarm.tables.view.revision - before <= 8


async def test_reports_made_while_the_manager_is_away_arrive_later(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        port = swarm.port
        agent = await swarm.agent("n1")
        task = await swarm.put_task(agent.node, status=TaskStatus(state=TaskState.STARTING))
        await eventually(lambda: f"task/{task.id}" in agent.session.view)
        swarm.agents.clear()
    try:
        await eventually(lambda: agent.session.error != "")
        agent.session.report(task.id, TaskStatus(state=TaskState.RUNNING))
        async with open_swarm(tmp_path, port=port) as again:
            await eventually(lambda: again.task(task.id).status.state == TaskState.RUNNING, within=10)
            assert agent.session.error == ""
            await agent.stop()
    finally:
        await agent.stop()


async def test_agent_with_a_gap_gets_a_snapshot(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        agent.session.revision -= 1  # as if a delta had been lost
        task = await swarm.put_task(agent.node)
        await eventually(lambda: f"task/{task.id}" in agent.session.view)
        assert agent.session.revision == swarm.tables.view.revision


async def test_a_node_whose_engine_does_not_answer_comes_back_all_the_same_and_tells_changes_when_it_does(
    tmp_path: Path,
) -> None:
    answers = asyncio.Event()

    async def describe() -> NodeDescription:
        await answers.wait()
        return NodeDescription(hostname="changed")

    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        agent.session._describe = describe
        agent.session.revision -= 1  # as if a delta had been lost: the session begins anew
        task = await swarm.put_task(agent.node)
        await eventually(lambda: f"task/{task.id}" in agent.session.view)
        answers.set()
        await eventually(lambda: swarm.node(agent.node).description.hostname == "changed")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda token: "", Invalid, "join token is needed"),
        (lambda token: "secret", Invalid, "expected SWMTKN-1-"),
        (lambda token: token[:-4], Invalid, "truncated"),
        (lambda token: token[:-4] + "!!!!", Invalid, "not of the form"),
        (lambda token: token[:-4] + "0000", Forbidden, "invalid join token"),
    ],
    ids=["missing", "other", "truncated", "strange", "wrong"],
)
async def test_bad_token_is_refused_and_changes_nothing(
    tmp_path: Path, spoil: Callable[[str], str], error: type[Exception], words: str
) -> None:
    async with open_swarm(tmp_path) as swarm:
        with pytest.raises(error, match=words):
            await try_join(swarm, spoil(swarm.cluster.worker_token))
        assert not swarm.tables.view.all(Node)
        assert load(tmp_path / "failing") is None


async def test_rotated_token_is_refused_and_members_stay(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        old = swarm.cluster.worker_token
        fresh = msgspec.structs.replace(swarm.cluster, worker_token=new_token(swarm.cluster.ca_cert))
        await swarm.tables.update(lambda tx: tx.put(fresh))
        with pytest.raises(Forbidden, match="rotated"):
            await try_join(swarm, old)
        assert agent.session.state == "ready"
        await swarm.join("n2")


async def test_a_manager_that_cannot_have_another_one_refuses_before_it_admits(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        nodes = len(swarm.tables.view.all(Node))
        with pytest.raises(Unavailable, match="cannot have another"):
            await try_join(swarm, swarm.cluster.manager_token)
        assert len(swarm.tables.view.all(Node)) == nodes


async def test_a_manager_that_does_not_lead_sends_agents_to_the_leader(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as leading, open_swarm(tmp_path, name="other", beside=leading) as following:
        agent = await leading.agent("n1")
        await agent.stop()
        identity = agent.session.identity.with_managers((following.manager,))
        again = await following.connect(identity)
        assert again.session.identity.facts.node_id == agent.node
        await eventually(lambda: leading.node(agent.node).state == "ready" and len(again.assigned) > 0)


async def test_without_a_leader_agents_wait_and_are_told_why(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        dispatcher, swarm.server.dispatcher = swarm.server.dispatcher, None
        await swarm.server.hang_up("the leader changed")
        await eventually(lambda: "does not have a leader" in agent.session.error)
        swarm.server.dispatcher = dispatcher
        await eventually(lambda: agent.session.error == "")


async def test_workers_cannot_do_what_managers_ask_each_other(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        identity = await swarm.join("n1")
        with pytest.raises(Forbidden, match="no manager"):
            await act_as_manager(identity, "")
        unread = TellRequest(node=identity.facts.node_id, frame=LogsUnwanted(id="1"))
        assert not await tell(identity, swarm.manager, unread)
        # nor one whose certificate says manager, and the store worker
        promoted = swarm.node(identity.facts.node_id)
        as_manager = msgspec.structs.replace(promoted.spec, role="manager")
        await swarm.tables.update(lambda tx: tx.put(msgspec.structs.replace(promoted, spec=as_manager)))
        identity = await renew(identity)
        assert identity.facts.role == "manager"
        with pytest.raises(Unavailable, match="cannot have another"):
            await act_as_manager(identity, "")
        demoted = msgspec.structs.replace(swarm.node(promoted.id), spec=promoted.spec)
        await swarm.tables.update(lambda tx: tx.put(demoted))
        with pytest.raises(Forbidden, match="no manager"):
            await act_as_manager(identity, "")


async def test_a_promoted_node_gets_a_certificate_for_its_role_and_a_demoted_one_loses_it(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")

        async def become(role: Role) -> None:
            node = swarm.node(agent.node)
            spec = msgspec.structs.replace(node.spec, role=role)
            await swarm.tables.update(lambda tx: tx.put(msgspec.structs.replace(node, spec=spec)))
            async with asyncio.timeout(5):
                await agent.session.role_is(role)
            loaded = load(tmp_path / "n1")
            assert loaded is not None
            assert loaded.facts.role == role

        await become("manager")
        await become("worker")


async def test_token_of_another_swarm_is_never_sent(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm, open_swarm(tmp_path, name="other") as other:
        with pytest.raises(Forbidden, match=r"another swarm.*different CA"):
            await try_join(swarm, other.cluster.worker_token)


async def test_unreachable_manager_is_named(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        token, gone = swarm.cluster.worker_token, swarm.manager
        # the second address works: the first is only a detour
        await try_join(swarm, token, remotes=["127.0.0.1:9", swarm.manager])
    with pytest.raises(Unavailable, match=f"cannot reach the manager at {gone}.*firewall"):
        await try_join(swarm, token)
    with pytest.raises(Invalid, match="manager address"):
        await try_join(swarm, token, remotes=["127.0.0.1:99999"])


async def test_callers_without_certificate_see_only_ca_and_join(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm, aiohttp.ClientSession() as http:
        base, tls = f"https://{swarm.manager}", client_context(swarm.cluster.ca_cert)
        for method, path, status in [
            ("GET", "/v1/ca", 200),
            ("GET", "/v1/session", 403),
            ("POST", "/v1/leave", 403),
            ("POST", "/v1/renew", 403),
            ("GET", "/v1/nothing", 404),
            ("POST", "/v1/join", 400),
        ]:
            async with http.request(method, base + path, ssl=tls, server_hostname=MANAGER_NAME) as answer:
                assert (path, answer.status) == (path, status)
                if status != 200:
                    assert "message" in codec.from_json(await answer.read(), dict)
        async with http.post(base + "/v1/join", data=b"x" * 100_000, ssl=tls, server_hostname=MANAGER_NAME) as answer:
            assert answer.status == 413


async def test_certificate_of_another_ca_is_refused_by_tls(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm, open_swarm(tmp_path, name="other") as other:
        stranger = await other.join("stranger")
        tls = client_context(swarm.cluster.ca_cert, stranger.certificate)
        async with aiohttp.ClientSession() as http:
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                async with http.get(f"https://{swarm.manager}/v1/ca", ssl=tls, server_hostname=MANAGER_NAME):
                    pass


async def test_worker_certificate_cannot_pose_as_a_manager(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        worker = await swarm.join("n1")
        (tmp_path / "manager" / "node.pem").write_bytes(worker.certificate.read_bytes())
        swarm_port = swarm.port
    async with open_swarm(tmp_path, port=swarm_port) as impostor:
        with pytest.raises(Unavailable, match="not trusted"):
            await try_join(impostor, impostor.cluster.worker_token)


async def test_malformed_frame_ends_the_session_with_the_reason(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        identity = await swarm.join("n1")
        for junk in (b"", b"\xc1", codec.pack({"kind": "nonsense"}), codec.pack({"kind": "ack", "revision": 1})):
            async with aiohttp.ClientSession() as http:
                async with http.ws_connect(
                    f"https://{swarm.manager}/v1/session", ssl=identity.client_context(), server_hostname=MANAGER_NAME
                ) as ws:
                    await ws.send_bytes(junk)
                    message = await ws.receive(5)
                    assert message.data == 4400
                    assert "frame" in (message.extra or "")
        assert (await swarm.agent("n2")).session.state == "ready"


async def test_removed_node_stops_and_says_why(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        await swarm.tables.update(lambda tx: tx.delete(swarm.node(agent.node)))
        await eventually(lambda: agent.session.state == "removed")
        assert "removed from the swarm" in agent.session.error
        await leave(agent.session.identity)  # nothing to tell any more, and no error
        again = await swarm.connect(agent.session.identity)
        assert again.session.state == "removed"
        assert "removed from this swarm" in again.session.error


async def test_leaving_node_is_down_at_once(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        await leave(agent.session.identity)
        assert (swarm.node(agent.node).state, swarm.node(agent.node).message) == ("down", "the node left the swarm")
        await eventually(lambda: agent.session.state == "removed")
        await swarm.dispatcher.inbox.flushed()
        left = swarm.node(agent.node)
        assert (left.state, left.lost_at) == ("down", left.updated + 30)  # the time to end its tasks, and no day


async def test_renewed_certificate_replaces_the_old_one(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        before = agent.session.identity.certificate.read_text()
        await renew(agent.session.identity)
        assert agent.session.identity.certificate.read_text() != before
        await agent.stop()
        again = await swarm.connect(agent.session.identity)
        assert again.session.state == "ready"


async def test_changed_settings_and_labels_reach_the_agent(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        node, cluster = swarm.node(agent.node), swarm.cluster
        spec = msgspec.structs.replace(cluster.spec, dispatcher=Dispatcher(heartbeat_period=100_000_000))
        labelled = msgspec.structs.replace(node, spec=NodeSpec(labels={"disk": "ssd"}))
        await swarm.tables.update(lambda tx: (tx.put(labelled), tx.put(msgspec.structs.replace(cluster, spec=spec))))
        await eventually(lambda: agent.session.labels == {"disk": "ssd"})
        await asyncio.sleep(1)  # ten of the new heartbeats
        assert swarm.node(agent.node).state == "ready"
        assert agent.session.error == ""


async def test_second_session_of_a_node_takes_over(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        first = await swarm.agent("n1")
        second = await swarm.connect(first.session.identity)
        await eventually(lambda: "newer session" in first.session.error)
        await first.stop()
        task = await swarm.put_task(second.node)
        await eventually(lambda: f"task/{task.id}" in second.session.view)
        assert isinstance(second.session.view[f"task/{task.id}"], TaskItem)


async def test_networks_are_told_to_members_and_known_without_managers_where_they_matter(tmp_path: Path) -> None:
    subnet = Subnet(prefix=ip_network("10.9.0.0/24"), gateway=ip_address("10.9.0.1"))
    many = [
        Network(id=NetworkID(f"id{number:03}"), spec=NetworkSpec(name=f"net{number}"), vni=VNI(5000 + number),
                subnets=(subnet,), created=float(number))
        for number in range(400)
    ]  # fmt: skip
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        identity = agent.session.identity
        await swarm.tables.update(lambda tx: [tx.put(network) for network in many])
        on = Attachment(
            endpoint_id=EndpointID("e"), network_id=many[7].id, addresses=(ip_interface("10.9.0.2/24"),), mac=MAC("m")
        )
        task = await swarm.put_task(agent.node, attachments=(on,))
        told = await inquiry.networks(identity, {})
        assert [about.network.spec.name for about in told.networks] == [network.spec.name for network in many]
        theirs = await inquiry.network(identity, {}, "net7")
        assert [member.name for member in theirs.members] == [task.name]
        with pytest.raises(NotFound, match="network no/where not found"):
            await inquiry.network(identity, {}, "no/where")
        await eventually(lambda: f"network/{many[7].id}" in agent.session.view)
        view = agent.session.view
        node = swarm.node(agent.node)
        await swarm.tables.update(lambda tx: tx.delete(node))
        with pytest.raises(Forbidden, match="was removed from this swarm"):
            await inquiry.network(identity, view, "net7")
        await agent.stop()
    assert [about.network.spec.name for about in (await inquiry.networks(identity, view)).networks] == ["net7"]
    mine = await inquiry.network(identity, view, "net7")
    assert [(member.name, member.addresses) for member in mine.members] == [(task.name, on.addresses)]
    with pytest.raises(Unavailable, match="does not take part in network net8, and cannot ask a manager: cannot reach"):
        await inquiry.network(identity, view, "net8")


async def test_trace_through_hundreds_of_backends_reaches_the_manager_that_asked(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        asked: list[str] = []

        async def wanted(node: NodeID, frame: FromManager) -> bool:
            assert isinstance(frame, TraceWanted)
            asked.append(frame.id)
            return True

        examiner = Examiner(swarm.tables, wanted)
        swarm.server._manager.examiner = examiner
        waiting = asyncio.create_task(examiner.trace(swarm.node(agent.node), Question(target=":8080")))
        await eventually(lambda: bool(asked))
        found = Trace(source="outside", target=":8080", protocol="tcp", notes=tuple("x" * 1000 for _ in range(900)))
        identity = agent.session.identity
        await tell_traced(identity, swarm.manager, Traced(id=asked[0], trace=found))
        assert await waiting == found
        with pytest.raises(HivemeshError, match="Too Large"):
            await join_module._call("POST", swarm.manager, "/v1/attach", identity.client_context(), b"x" * 100_000)


async def test_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        with pytest.raises(AssertionError, match="cannot listen on"):
            async with open_swarm(tmp_path, name="other", port=swarm.port):
                pass


async def test_a_manager_that_falls_silent_is_left_once_there_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session began when there was no other one to go to."""
    monkeypatch.setattr(session_module, "PING", 0.1)
    async with open_swarm(tmp_path) as swarm:
        silent = asyncio.Event()
        passing: list[asyncio.Future[tuple[BaseException | None, BaseException | None]]] = []

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while piece := await reader.read(65536):
                if not silent.is_set():
                    writer.write(piece)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", swarm.port)
            passing.append(asyncio.gather(pass_on(reader, back), pass_on(there, writer), return_exceptions=True))
            with contextlib.suppress(asyncio.CancelledError):
                await passing[-1]
            for each in (back, writer):
                each.transport.abort()

        proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
        first = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        await swarm.tables.update(
            lambda tx: tx.put(Node(id=NodeID("m"), spec=NodeSpec(role="manager"), manager_addr=first))
        )
        identity = (await swarm.join("one")).with_managers((first,))
        agent = await swarm.connect(identity)
        await asyncio.sleep(0.3)
        assert agent.session.error == "", "there is nowhere else to go"
        other = Node(id=NodeID("other"), spec=NodeSpec(role="manager"), manager_addr=swarm.manager)
        await swarm.tables.update(lambda tx: tx.put(other))
        await eventually(lambda: len(agent.session.identity.facts.managers) == 2)
        await asyncio.sleep(0.3)
        assert agent.session.error == "", "it answers when it is asked"
        silent.set()
        await eventually(lambda: "says nothing any more" in agent.session.error)
        await eventually(lambda: agent.session.error == "")
        proxy.close()
        for each in passing:
            each.cancel()
        await asyncio.sleep(0.05)
