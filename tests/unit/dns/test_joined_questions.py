"""Clients that ask the same while the question is on its way: who joins, who asks anew, and what each is told."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import dns.message
import msgspec
import pytest

from hivemesh.dns import server
from hivemesh.dns.answer import Answers
from hivemesh.dns.server import Listener, Shared, Sockets
from hivemesh.dns.tables import Scope
from hivemesh.wire.resolver import Sandbox
from nameserver import record

SANDBOX = Sandbox(id="sb", netns="", networks=())


class Others:
    """Other servers, which answer when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Callable[[bytes | None], None]]] = []

    def ready(self, query: bytes, sandbox: Sandbox) -> bytes | None:
        return None

    def ask(
        self, query: bytes, sandbox: Sandbox, told: Callable[[bytes | None], None], *, tcp: bool = False
    ) -> bytes | None:
        self.asked.append((query, told))
        return None

    def answer(self, number: int, address: str) -> None:
        query, told = self.asked[number]
        told(record(dns.message.from_wire(query), address).to_wire())


class Place:
    """A listener on loopback, and clients of it."""

    def __init__(self) -> None:
        self.others = Others()
        self.shared = Shared(self.others)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        udp.bind(("127.0.0.1", 0))
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        self.listener = Listener(SANDBOX, Answers(Scope()), Sockets(udp, tcp), self.shared)
        self._address = udp.getsockname()
        self._clients: list[socket.socket] = []
        self.listener.start()

    async def ask(self, ident: int, name: str = "example.com") -> socket.socket:
        """Returns once the listener has read it."""
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._clients.append(client)
        client.connect(self._address)
        query = dns.message.make_query(name, "A", id=ident)
        before = len(self.others.asked) + self.listener._joined
        client.send(query.to_wire())
        while len(self.others.asked) + self.listener._joined == before:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        return client

    async def told(self, client: socket.socket) -> dns.message.Message:
        return dns.message.from_wire(await asyncio.get_running_loop().sock_recv(client, 4096))

    def close(self) -> None:
        self.listener.close()
        for client in self._clients:
            client.close()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    made.close()


def address(answer: dns.message.Message) -> str:
    return str(answer.answer[0][0])


async def test_equal_questions_of_several_clients_leave_once_and_each_is_told_with_its_own_id(place: Place) -> None:
    clients = [await place.ask(ident) for ident in range(5)]
    other = await place.ask(77, "example.org")
    assert len(place.others.asked) == 2
    place.others.answer(0, "192.0.2.1")
    answers = [await place.told(client) for client in clients]
    assert [answer.id for answer in answers] == [0, 1, 2, 3, 4]
    assert {address(answer) for answer in answers} == {"192.0.2.1"}
    place.others.answer(1, "192.0.2.2")
    assert address(await place.told(other)) == "192.0.2.2"
    assert place.shared.joined == place.listener._joined == 0
    assert not place.listener._crowds
    await place.ask(9)
    assert len(place.others.asked) == 3  # what was answered is over: the next one is asked


async def test_when_nobody_answers_all_who_joined_learn_it(place: Place) -> None:
    clients = [await place.ask(ident) for ident in range(3)]
    place.others.asked[0][1](None)
    answers = [await place.told(client) for client in clients]
    assert [(answer.id, answer.rcode()) for answer in answers] == [(0, 2), (1, 2), (2, 2)]


async def test_a_client_that_cannot_be_told_takes_the_answer_from_nobody(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, deaf, last = [await place.ask(ident) for ident in range(3)]
    send, refused = place.listener._send, deaf.getsockname()

    def send_to(message: bytes, client: tuple[str, int]) -> int:
        if client == refused:
            raise PermissionError("a packet filter of somebody else")
        return send(message, client)

    monkeypatch.setattr(place.listener, "_send", send_to)
    place.others.answer(0, "192.0.2.1")
    assert [(await place.told(client)).id for client in (first, last)] == [0, 2]


async def test_after_a_moment_a_question_is_asked_anew_while_the_first_still_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "JOIN_FOR", 0.0)
    first, second = await place.ask(1), await place.ask(2)
    assert len(place.others.asked) == 2
    place.others.answer(1, "192.0.2.2")
    place.others.answer(0, "192.0.2.1")
    assert address(await place.told(first)) == "192.0.2.1"
    assert address(await place.told(second)) == "192.0.2.2"
    assert not place.listener._crowds


async def test_with_other_settings_of_the_sandbox_nobody_joins_an_earlier_question(place: Place) -> None:
    first = await place.ask(1)
    place.listener.sandbox = msgspec.structs.replace(SANDBOX, forward=False)
    second = await place.ask(2)
    third = await place.ask(3)
    assert len(place.others.asked) == 2
    place.others.answer(0, "192.0.2.1")
    place.others.answer(1, "192.0.2.2")
    assert [address(await place.told(client)) for client in (first, second, third)] == [
        "192.0.2.1", "192.0.2.2", "192.0.2.2",
    ]  # fmt: skip


@pytest.mark.parametrize("bound", ["MOST_JOINED", "MOST_JOINED_EACH"])
async def test_beyond_a_bound_clients_ask_for_themselves(
    place: Place, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(server, bound, 3)
    clients = [await place.ask(ident) for ident in range(5)]
    assert len(place.others.asked) == 2
    place.others.answer(1, "192.0.2.1")
    place.others.answer(0, "192.0.2.1")
    assert [(await place.told(client)).id for client in clients] == [0, 1, 2, 3, 4]
    assert place.shared.joined == 0


async def test_who_was_replaced_ends_only_when_all_who_joined_were_told(place: Place) -> None:
    clients = [await place.ask(ident) for ident in range(3)]
    place.listener.pause()
    place.listener.retire()
    assert not place.listener.finished.is_set()
    place.others.answer(0, "192.0.2.1")
    assert [(await place.told(client)).id for client in clients] == [0, 1, 2]
    assert place.listener.finished.is_set()
