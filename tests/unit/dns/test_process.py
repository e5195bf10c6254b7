"""Which connection the resolver listens to."""

import asyncio
from collections.abc import Callable
from ipaddress import ip_address

from hivemesh.dns.process import Process
from hivemesh.dns.resolver import Resolver
from hivemesh.dns.server import Shared
from hivemesh.model.ids import NetworkID
from hivemesh.wire.resolver import Names, Renames, Sandbox, Sync, framed


class Nobody:
    """Asks nobody."""

    def ready(self, query: bytes, sandbox: Sandbox) -> bytes | None:
        return None

    def ask(
        self, query: bytes, sandbox: Sandbox, told: Callable[[bytes | None], None], *, tcp: bool = False
    ) -> bytes | None:
        told(None)
        return None


class Writer(asyncio.StreamWriter):
    """Remembers whether a number was confirmed, and whether it was closed."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if b"synced" in data:
            self.synced.set()

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def close(self) -> None:
        self.closed = True

    def __del__(self) -> None:
        pass


def named(name: str) -> bytes:
    return framed(Names(network=NetworkID("n"), name=name, addresses={}, reverse={}))


async def test_word_of_a_daemon_that_was_replaced_changes_nothing_any_more() -> None:
    resolver = Resolver(Shared(Nobody()))
    process = Process(resolver, -1, asyncio.Event())
    lines = [(asyncio.StreamReader(), Writer()) for _ in range(2)]
    (old, old_writer), (new, new_writer) = lines
    tasks = [asyncio.create_task(process.serve(*line)) for line in lines]
    old.feed_data(named("first") + framed(Sync(number=1)))
    await old_writer.synced.wait()
    new.feed_data(named("second") + framed(Sync(number=1)))
    await new_writer.synced.wait()
    assert old_writer.closed
    old.feed_data(named("late"))
    await tasks[0]
    assert resolver.tables[NetworkID("n")].name == "second"
    assert not new_writer.closed
    new.feed_eof()
    await tasks[1]
    assert resolver.tables[NetworkID("n")].name == "second"


async def test_changes_of_a_table_apply_to_it_and_without_it_end_the_connection() -> None:
    resolver = Resolver(Shared(Nobody()))
    process = Process(resolver, -1, asyncio.Event())
    more = framed(
        Renames(
            network=NetworkID("n"), addresses={"web": (ip_address("10.0.1.5"),)}, reverse={}, gone=(), gone_reverse=()
        )
    )  # fmt: skip
    line, writer = asyncio.StreamReader(), Writer()
    task = asyncio.create_task(process.serve(line, writer))
    line.feed_data(named("first") + more + framed(Sync(number=1)))
    await writer.synced.wait()
    assert resolver.tables[NetworkID("n")].addresses == {"web": (ip_address("10.0.1.5"),)}
    later, its_writer = asyncio.StreamReader(), Writer()
    later.feed_data(more)  # on a connection that told nothing of it, though an earlier one did
    await process.serve(later, its_writer)
    assert its_writer.closed
    line.feed_eof()
    await task
