"""Which of several managers takes a connection first."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from hivemesh.agent import knock
from hivemesh.agent.knock import Silence, who_is_there


@pytest.fixture
def open_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent_port() -> Iterator[str]:
    """Its queue is full, so the kernel drops whoever knocks."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for caller in (first, second):
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_who_listens_is_found_beside_who_refuses_and_who_is_silent(
    open_port: str, closed_port: str, silent_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knock, "PAUSE", 0.02)
    for _ in range(5):
        assert await who_is_there((closed_port, silent_port, open_port), 30) == open_port


async def test_all_who_refuse_are_named(closed_port: str) -> None:
    with pytest.raises(ConnectionError, match=f"{closed_port}: Connection refused") as refused:
        await who_is_there((closed_port,), 30)
    assert not isinstance(refused.value, Silence)


async def test_silence_is_told_from_refusal(closed_port: str, silent_port: str) -> None:
    with pytest.raises(Silence, match=r"no answer in time"):
        await who_is_there((silent_port, closed_port), 0.1)


async def test_one_who_begins_to_answer_is_noticed_before_the_first_packet_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first knock never gets an answer; the second, a moment later, does."""
    monkeypatch.setattr(knock, "PAUSE", 0.02)
    knocked: list[str] = []

    async def answer(manager: str) -> str:
        knocked.append(manager)
        if len(knocked) == 1:
            await asyncio.Event().wait()
        return manager

    monkeypatch.setattr(knock, "_knock", answer)
    assert await who_is_there(("192.0.2.1:2377",), 30) == "192.0.2.1:2377"
    assert len(knocked) == 2
