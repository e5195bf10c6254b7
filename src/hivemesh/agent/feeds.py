"""Tells managers of this node's traffic while somebody looks there."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from hivemesh.agent.identity import Identity
from hivemesh.agent.streams import Streams
from hivemesh.wire.control import FeedUnwanted, FeedWanted
from hivemesh.wire.feed import Entry, What
from hivemesh.wire.framing import framed

MOST = 16
"""Readers served at a time."""


class FeedSender:
    """`source` gives what is to be told, without an end."""

    def __init__(self, identity: Callable[[], Identity], source: Callable[[What], AsyncGenerator[Entry, None]]) -> None:
        self._source = source
        self._streams = Streams("feed", identity, MOST)

    def heed(self, frame: FeedWanted | FeedUnwanted, manager: str) -> None:
        """Begin or end; `manager` (host:port) told us."""
        manager = frame.manager or manager
        if isinstance(frame, FeedUnwanted):
            self._streams.end(frame.id, manager)
        else:
            self._streams.begin(frame.id, manager, lambda: self._pieces(frame.what))

    async def close(self) -> None:
        await self._streams.close()

    async def _pieces(self, what: What) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._source(what)) as entries:
            async for entry in entries:
                yield framed(entry)
