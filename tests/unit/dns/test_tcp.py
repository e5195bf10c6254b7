"""One connection: how much is taken from it while answers wait, and when it ends."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest

from hivemesh.dns.tcp import BATCH, MOST_ASKING, MOST_UNSENT, Connection

ANSWER = bytes(60_000)


def with_length(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class Line:
    """A connection under test, and the client's end."""

    def __init__(self, later: asyncio.Future[bytes] | None = None, idle: float = 1000.0) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.asked: list[bytes] = []
        self.later = later
        self.closed = asyncio.Event()
        self.client = theirs
        self.connection = Connection(ours, self._respond, lambda _: self.closed.set(), idle=idle)

    def _respond(self, message: bytes) -> bytes | Coroutine[None, None, bytes] | None:
        self.asked.append(message)
        if message == b"junk":
            return None
        return ANSWER if self.later is None else self._wait(self.later)

    async def _wait(self, answer: asyncio.Future[bytes]) -> bytes:
        return await asyncio.shield(answer)

    async def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await asyncio.get_running_loop().sock_recv(self.client, count - len(data))
            if not part:
                break
            data += part
        return data


@pytest.fixture
async def open_line() -> AsyncIterator[Callable[..., Line]]:
    lines: list[Line] = []

    def make(**settings: object) -> Line:
        lines.append(Line(**settings))  # type: ignore[arg-type]
        lines[-1].connection.start()
        return lines[-1]

    yield make
    for line in lines:
        line.connection.close()
        line.client.close()


async def settle() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


async def test_client_that_reads_nothing_is_asked_for_no_more_until_it_does(open_line: Callable[..., Line]) -> None:
    line = open_line()
    line.client.sendall(with_length(b"question") * 500)
    await settle()
    held = len(line.asked)
    assert held * len(ANSWER) < MOST_UNSENT + 1_000_000  # and what the kernel holds
    assert await line.read(500 * (2 + len(ANSWER))) == with_length(ANSWER) * 500
    assert len(line.asked) == 500


async def test_questions_asked_on_are_bounded_and_others_follow(open_line: Callable[..., Line]) -> None:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    line = open_line(later=answer)
    line.client.sendall(with_length(b"question") * (MOST_ASKING + 50))
    await settle()
    assert len(line.asked) == MOST_ASKING
    answer.set_result(b"yes")
    assert await line.read(5 * (MOST_ASKING + 50)) == with_length(b"yes") * (MOST_ASKING + 50)


async def test_end_of_the_client_waits_for_its_answers(open_line: Callable[..., Line]) -> None:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    line = open_line(later=answer)
    line.client.sendall(with_length(b"question") * (2 * BATCH + 1))
    line.client.shutdown(socket.SHUT_WR)
    await settle()
    assert not line.closed.is_set()
    answer.set_result(b"yes")
    assert await line.read(10_000) == with_length(b"yes") * (2 * BATCH + 1)
    await line.closed.wait()


async def test_junk_ends_the_connection(open_line: Callable[..., Line]) -> None:
    line = open_line()
    line.client.sendall(with_length(b"junk"))
    await line.closed.wait()


async def test_silence_ends_the_connection_but_not_while_an_answer_is_due(open_line: Callable[..., Line]) -> None:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    silent, waiting = open_line(idle=0.01), open_line(idle=0.01, later=answer)
    waiting.client.sendall(with_length(b"question"))
    await silent.closed.wait()
    await asyncio.sleep(0.05)
    assert not waiting.closed.is_set()
    answer.set_result(b"yes")
    assert await waiting.read(5) == with_length(b"yes")
    await waiting.closed.wait()


async def test_connection_with_an_answer_due_is_finished_where_it_was_asked(open_line: Callable[..., Line]) -> None:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    line = open_line(later=answer)
    line.client.sendall(with_length(b"question") + b"\0")
    await settle()
    line.connection.pause()
    assert line.connection.part() is None
    line.connection.finish()
    answer.set_result(b"yes")
    assert await line.read(10) == with_length(b"yes")
    idle = open_line()
    idle.client.sendall(b"\0\5que")
    await settle()
    idle.connection.pause()
    part = idle.connection.part()
    assert part is not None
    assert part[1] == b"\0\5que"
