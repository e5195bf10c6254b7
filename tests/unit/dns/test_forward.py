"""Questions passed on, to name servers of the test on loopback."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import msgspec
import pytest

from hivemesh.clock import ManualClock
from hivemesh.dns.forward import LOOK_EVERY, Forwarder
from hivemesh.model.addr import parse_address
from hivemesh.wire.resolver import Sandbox
from nameserver import Answer, NameServer, code, forwarded, free_port, record, serving

SANDBOX = Sandbox(id="sb", netns="/proc/self/ns/net", networks=())
PATIENCE = 1.0


class Node:
    """A node whose resolv.conf names servers at 127.0.0.1, .2 and so on."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.conf = folder / "resolv.conf"
        self.conf.write_text("")
        self.port = free_port()
        self.forwarder = Forwarder(host_conf=self.conf, port=self.port, patience=PATIENCE, now=self.clock.now)
        self._open = AsyncExitStack()
        self._servers = 0

    def name(self, *addresses: str) -> None:
        """Write the node's file anew; it is looked at again after a moment."""
        fresh = self.conf.with_suffix(".new")
        fresh.write_text("".join(f"nameserver {address}\n" for address in addresses))
        os.replace(fresh, self.conf)
        self.clock.advance(LOOK_EVERY)

    async def server(self, address: str, answer: Answer) -> NameServer:
        return await self._open.enter_async_context(serving(address, self.port, answer))

    async def ask(
        self, query: dns.message.Message, *, tcp: bool = False, sandbox: Sandbox = SANDBOX
    ) -> dns.message.Message | None:
        answer = await forwarded(self.forwarder, query.to_wire(), sandbox, tcp=tcp)
        if answer is None:
            return None
        read = dns.message.from_wire(answer)
        assert query.is_response(read)
        assert str(read.question[0].name) == str(query.question[0].name)
        return read

    async def close(self) -> None:
        await self.forwarder.close()
        await self._open.aclose()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    await made.close()


def question(name: str = "example.com", kind: str = "A", **options: object) -> dns.message.QueryMessage:
    return dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]


def unexpected(answer: bytes | None) -> None:
    raise AssertionError(f"asked for what is known: {answer!r}")


def failing(rcode: dns.rcode.Rcode) -> Answer:
    return lambda query: code(query, rcode)


async def test_a_question_goes_to_the_nodes_server_unchanged_but_for_its_id(node: Node) -> None:
    server = await node.server("127.0.0.1", record)
    node.name("127.0.0.1")
    query = question("eXample.com", want_dnssec=True, payload=1400)
    answer = await node.ask(query)
    assert answer is not None
    assert answer.answer[0].to_text() == "eXample.com. 60 IN A 192.0.2.1"
    (asked,) = server.asked
    sent = query.to_wire()
    asked.id = query.id
    assert asked.to_wire() == sent


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_a_server_that_fails_is_followed_by_the_next(node: Node, rcode: dns.rcode.Rcode) -> None:
    first = await node.server("127.0.0.1", failing(rcode))
    await node.server("127.0.0.2", record)
    node.name("127.0.0.1", "127.0.0.2")
    answer = await node.ask(question())
    assert answer is not None
    assert answer.answer
    assert len(first.asked) == 1


async def test_a_name_that_does_not_exist_is_an_answer(node: Node) -> None:
    await node.server("127.0.0.1", failing(dns.rcode.NXDOMAIN))
    second = await node.server("127.0.0.2", record)
    node.name("127.0.0.1", "127.0.0.2")
    answer = await node.ask(question())
    assert answer is not None
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert not second.asked


@pytest.mark.parametrize("own", [False, True])
async def test_only_three_servers_are_asked_and_that_all_failed_is_remembered_for_a_moment(
    node: Node, own: bool
) -> None:
    servers = [await node.server(f"127.0.0.{n}", failing(dns.rcode.SERVFAIL)) for n in (1, 2, 3)]
    servers.append(await node.server("127.0.0.4", record))
    addresses = [f"127.0.0.{n}" for n in (1, 2, 3, 4)]
    node.name(*addresses)
    sandbox = msgspec.structs.replace(SANDBOX, nameservers=tuple(map(parse_address, addresses)) if own else ())
    assert await node.ask(question(), sandbox=sandbox) is None
    assert await node.ask(question(), sandbox=sandbox) is None
    assert [len(s.asked) for s in servers] == [1, 1, 1, 0]
    node.clock.advance(2)
    assert await node.ask(question(), sandbox=sandbox) is None
    assert [len(s.asked) for s in servers] == [2, 2, 2, 0]


async def test_a_silent_server_is_waited_for_once(node: Node) -> None:
    silent = await node.server("127.0.0.1", lambda query: None)
    await node.server("127.0.0.2", record)
    node.name("127.0.0.1", "127.0.0.2")
    for number in range(5):
        assert await node.ask(question(f"n{number}.example")) is not None
    assert len(silent.asked) == 1
    for server in node.forwarder._servers:
        server.patience = 20.0  # one that was silent is not waited for so long again while there are others
    node.clock.advance(30)
    assert await node.ask(question("later.example")) is not None
    silent.answer = record
    node.clock.advance(30)
    assert await node.ask(question("alive.example")) is not None
    assert await node.ask(question("again.example")) is not None
    assert len(silent.asked) == 4


async def test_a_question_that_is_lost_is_sent_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemesh.dns.upstream.RESEND", 0.01)
    server = await node.server("127.0.0.1", lambda query: record(query) if len(server.asked) == 2 else None)
    node.forwarder._patience = 20.0
    node.name("127.0.0.1")
    assert await node.ask(question()) is not None
    assert server.asked[0] == server.asked[1]
    assert server.peers[0] == server.peers[1]


async def test_source_ports_are_replaced_while_an_answer_is_awaited(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hivemesh.dns.upstream.PORT_AGE", 0.0)
    server = await node.server(
        "127.0.0.1", lambda query: None if "slow" in str(query.question[0].name) else record(query)
    )
    node.forwarder._patience = 20.0
    node.name("127.0.0.1")
    slow = [asyncio.create_task(node.ask(question(f"slow{n}.example"))) for n in range(20)]
    for number in range(40):
        assert await node.ask(question(f"n{number}.example")) is not None
    assert len(set(server.peers)) > 50  # the kernel may choose one twice
    assert server._transport is not None
    for query, peer in zip(server.asked, server.peers, strict=True):
        if "slow" in str(query.question[0].name):
            server._transport.sendto(record(query).to_wire(), peer)
    assert all(await asyncio.gather(*slow))
    (asked,) = node.forwarder._node.servers
    assert not asked._retired


async def test_sockets_of_a_server_nobody_asks_are_closed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemesh.dns.upstream.IDLE", 0.01)
    node.forwarder._patience = 0.5
    await node.server("127.0.0.1", record)
    before = len(os.listdir("/proc/self/fd"))
    node.name("127.0.0.1")
    assert await node.ask(question()) is not None
    (asked,) = node.forwarder._node.servers
    while asked._ports:  # noqa: ASYNC110 - the timer tells nobody
        await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) == before
    assert await node.ask(question("again.example")) is not None


async def test_a_port_nobody_listens_on_costs_no_waiting(node: Node) -> None:
    await node.server("127.0.0.2", record)
    node.forwarder._patience = 20.0
    node.name("127.0.0.1", "127.0.0.2")
    assert await node.ask(question()) is not None
    assert await node.ask(question(), tcp=True) is not None


async def test_without_servers_nobody_answers(node: Node) -> None:
    assert await node.ask(question()) is None


async def test_equal_questions_under_way_are_asked_once(node: Node) -> None:
    come = asyncio.Event()
    server = await node.server("127.0.0.1", lambda query: None)
    node.name("127.0.0.1")
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"01234567")

    def answer(query: dns.message.Message) -> None:
        if len(server.asked) == 2:
            come.set()

    server.answer = answer
    names = ["example.com", "EXAMPLE.com", "example.COM"] * 30
    asking = [asyncio.create_task(node.ask(question(name))) for name in names]
    edns = [asyncio.create_task(node.ask(question(use_edns=0, options=options))) for options in ([cookie], None)]
    await come.wait()
    asking[0].cancel()  # who gives up takes nobody along
    assert server._transport is not None
    for query, peer in zip(server.asked, server.peers, strict=True):
        reply = record(query)
        if query.edns >= 0:
            reply.use_edns(0, options=[cookie])
        server._transport.sendto(reply.to_wire(), peer)
    answers = await asyncio.gather(*asking[1:])
    assert all(a is not None and a.answer for a in answers)
    with_cookie, without = await asyncio.gather(*edns)
    assert with_cookie is not None
    assert without is not None
    assert (len(with_cookie.options), len(without.options)) == (1, 0)
    assert len(server.asked) == 2
    assert not node.forwarder._flights
    assert not node.forwarder._asking


async def test_an_answer_is_kept_for_as_long_as_it_says(node: Node) -> None:
    server = await node.server("127.0.0.1", lambda query: record(query, ttl=10))
    node.name("127.0.0.1")
    ttls = []
    for _ in range(4):
        answer = await node.ask(question("Example.com"))
        assert answer is not None
        ttls.append(answer.answer[0].ttl)
        for asking in (question("Example.com"), question("eXAMPLE.com")):
            ready = node.forwarder.ask(asking.to_wire(), SANDBOX, unexpected)
            assert ready is not None
            read = dns.message.from_wire(ready)
            assert asking.is_response(read)
            assert read.question == asking.question
            assert read.answer[0].ttl == ttls[-1]
        node.clock.advance(4)
    assert ttls == [10, 6, 2, 10]
    assert len(server.asked) == 2


async def test_a_name_that_does_not_exist_is_kept_by_its_zones_minimum(node: Node) -> None:
    def nothing(query: dns.message.Message) -> dns.message.Message:
        answer = code(query, dns.rcode.NXDOMAIN)
        answer.authority.append(dns.rrset.from_text("com.", 900, "IN", "SOA", "ns.com. root.com. 1 2 3 4 5"))
        return answer

    server = await node.server("127.0.0.1", nothing)
    node.name("127.0.0.1")
    for _ in range(3):
        answer = await node.ask(question())
        assert answer is not None
        assert answer.rcode() == dns.rcode.NXDOMAIN
    assert len(server.asked) == 1
    node.clock.advance(5)
    await node.ask(question())
    assert len(server.asked) == 2


async def test_a_truncated_answer_sends_its_asker_to_tcp(node: Node) -> None:
    def long(query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        if server.connections:
            texts = [f'"{n:0200}"' for n in range(40)]
            answer.answer.append(dns.rrset.from_text_list(query.question[0].name, 60, "IN", "TXT", texts))
        else:
            answer.flags |= dns.flags.TC
        return answer

    server = await node.server("127.0.0.1", long)
    node.name("127.0.0.1")
    short = await node.ask(question(kind="TXT"))
    assert short is not None
    assert short.flags & dns.flags.TC
    whole = await node.ask(question(kind="TXT"), tcp=True)
    assert whole is not None
    assert len(whole.answer[0]) == 40
    assert not whole.flags & dns.flags.TC
    kept = await node.ask(question(kind="TXT"))
    assert kept is not None
    assert kept.flags & dns.flags.TC
    assert len(server.asked) == 2


async def test_questions_by_tcp_share_a_connection_and_survive_its_end(node: Node) -> None:
    server = await node.server("127.0.0.1", record)
    node.name("127.0.0.1")
    answers = await asyncio.gather(*(node.ask(question(f"n{n}.example"), tcp=True) for n in range(20)))
    assert all(answers)
    assert server.connections == 1
    server.keep_open = False
    await node.ask(question("last.example"), tcp=True)
    assert await node.ask(question("next.example"), tcp=True) is not None
    assert server.connections == 2


async def test_a_connection_closed_just_as_we_ask_is_made_anew(node: Node) -> None:
    def answer(query: dns.message.Message) -> dns.message.Message | None:
        server.keep_open = server.connections > 1 or len(server.asked) == 1
        return record(query) if server.keep_open else None

    server = await node.server("127.0.0.1", answer)
    node.name("127.0.0.1")
    assert await node.ask(question("first.example"), tcp=True) is not None
    assert await node.ask(question("second.example"), tcp=True) is not None
    assert server.connections == 2


async def test_answers_nobody_asked_for_are_ignored(node: Node) -> None:
    def forged(query: dns.message.Message) -> list[bytes]:
        wrong_id = record(query, "192.0.2.66")
        wrong_id.id ^= 1
        other_question = record(question("example.org"), "192.0.2.66")
        other_question.id = query.id
        no_answer = record(query, "192.0.2.66")
        no_answer.flags &= ~dns.flags.QR
        bad = [m.to_wire() for m in (wrong_id, other_question, no_answer)] + [b"", b"\0", query.to_wire()[:14]]
        return [*bad, record(query).to_wire()]

    server = await node.server("127.0.0.1", forged)
    node.name("127.0.0.1")
    seen = set()
    for number in range(100):
        answer = await node.ask(question("example.com" if number == 0 else f"n{number}.example"))
        assert answer is not None
        assert answer.answer[0][0].to_text() == "192.0.2.1"
        seen.add(server.peers[-1])
        attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        attacker.sendto(record(server.asked[-1], "192.0.2.66").to_wire(), server.peers[-1])
        attacker.close()
    assert len(seen) > 3  # source ports
    assert len({q.id for q in server.asked}) > 90


async def test_records_that_are_broken_count_as_no_answer(node: Node) -> None:
    await node.server("127.0.0.1", lambda query: [record(query).to_wire()[:-3]])
    await node.server("127.0.0.2", record)
    node.name("127.0.0.1", "127.0.0.2")
    assert await node.ask(question()) is not None


async def test_other_servers_of_the_node_make_earlier_answers_void(node: Node) -> None:
    await node.server("127.0.0.1", record)
    await node.server("127.0.0.2", lambda query: record(query, "192.0.2.2"))
    node.name("127.0.0.1")
    await node.ask(question())
    node.name("127.0.0.2")
    answer = await node.ask(question())
    assert answer is not None
    assert answer.answer[0][0].to_text() == "192.0.2.2"


async def test_a_sandbox_with_servers_of_its_own_asks_these_and_shares_nothing(node: Node) -> None:
    await node.server("127.0.0.1", record)
    own = await node.server("127.0.0.2", lambda query: record(query, "192.0.2.2"))
    node.name("127.0.0.1")
    with_own = Sandbox(id="own", netns="/proc/self/ns/net", networks=(), nameservers=(parse_address("127.0.0.2"),))
    texts = []
    for sandbox in (SANDBOX, with_own, SANDBOX):
        answer = await node.ask(question(), sandbox=sandbox)
        assert answer is not None
        texts.append(answer.answer[0][0].to_text())
    assert texts == ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
    node.forwarder.forget("own")
    assert await node.ask(question("other.example"), sandbox=with_own) is not None
    assert len(own.asked) == 2


async def test_a_sandbox_is_never_led_back_to_us(node: Node) -> None:
    ourselves = await node.server("127.0.0.11", record)
    loop = Sandbox(
        id="loop",
        netns="/proc/self/ns/net",
        networks=(),
        nameservers=(parse_address("127.0.0.11"), parse_address("::ffff:127.0.0.11")),
    )
    assert await node.ask(question(), sandbox=loop) is None
    assert not ourselves.asked


async def test_an_internal_sandbox_asks_nobody(node: Node) -> None:
    server = await node.server("127.0.0.1", record)
    node.name("127.0.0.1")
    await node.ask(question())
    internal = Sandbox(id="internal", netns="/proc/self/ns/net", networks=(), forward=False)
    assert await node.ask(question(), sandbox=internal) is None
    assert len(server.asked) == 1


async def test_a_sandbox_that_goes_takes_its_sockets_along_and_lets_nobody_wait(node: Node) -> None:
    come = asyncio.Event()

    def silent(query: dns.message.Message) -> None:
        come.set()

    await node.server("127.0.0.1", silent)
    node.forwarder._patience = 20.0
    own = Sandbox(id="own", netns="/proc/self/ns/net", networks=(), nameservers=(parse_address("127.0.0.1"),))
    before = len(os.listdir("/proc/self/fd"))
    asking = asyncio.create_task(node.ask(question(), sandbox=own))
    await come.wait()
    node.forwarder.forget("own")
    assert await asking is None
    assert len(os.listdir("/proc/self/fd")) == before


async def test_one_sandbox_leaves_room_for_the_others(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemesh.dns.forward.MAX_ASKING_EACH", 20)
    node.forwarder._patience = 20.0
    await node.server("127.0.0.1", lambda query: record(query) if "mine" in str(query.question[0].name) else None)
    node.name("127.0.0.1")
    greedy = [asyncio.create_task(node.ask(question(f"n{n}.example"))) for n in range(21)]
    done, _ = await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [None]
    other = Sandbox(id="other", netns="/proc/self/ns/net", networks=())
    assert await node.ask(question("mine.example"), sandbox=other) is not None
    await node.forwarder.close()
    assert await asyncio.gather(*greedy) == [None] * 21
    assert not node.forwarder._asking


@pytest.mark.parametrize(
    "build", [lambda wire: wire[:11], lambda wire: wire + b"\0", lambda wire: wire[:2] + b"\x80" + wire[3:]]
)
async def test_what_is_no_question_goes_nowhere(node: Node, build: Callable[[bytes], bytes]) -> None:
    server = await node.server("127.0.0.1", record)
    node.name("127.0.0.1")
    query = build(question().to_wire())
    assert await forwarded(node.forwarder, query, SANDBOX, tcp=False) is None
    assert not server.asked
