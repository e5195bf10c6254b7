"""Which manager is there: found out by TCP alone, as soon as one is.

A first packet that is lost is sent again after 1, 3 and 7 seconds (RFC 6298). A node that was cut off would notice the
end of that as late; so another connection is begun after `PAUSE`, to one manager after the other, beside those that
have no answer yet. A far manager, whose answer takes longer than that, is reached all the same.
"""

import asyncio
import contextlib
import itertools
import os
import random
from collections.abc import Sequence

from hivemesh.model.addr import parse_host_port

PAUSE = 0.25
"""Seconds between two connections that are begun, at most; a random part of the last quarter is left out, so that
nodes which were cut off together do not come back at one moment."""


class Silence(ConnectionError):
    """Nobody says anything, not even no: the way there is cut, or machines are off."""


class _Refused(Exception):
    def __init__(self, manager: str, error: OSError) -> None:
        super().__init__(f"{manager}: {os.strerror(error.errno) if error.errno else error}")
        self.manager = manager


async def who_is_there(managers: Sequence[str], patience: float) -> str:
    """The first manager (host:port) that takes a connection; they are tried in this order, again and again.

    Raises `Silence` when none answers in `patience` seconds, `ConnectionError` when all refuse.
    """
    order = itertools.cycle(managers)
    trying: set[asyncio.Task[str]] = set()
    refused: dict[str, str] = {}
    try:
        async with asyncio.timeout(patience):
            while not refused.keys() >= set(managers):
                trying.add(asyncio.create_task(_knock(next(order))))
                pause = PAUSE * random.uniform(0.75, 1.0)
                done, trying = await asyncio.wait(trying, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    try:
                        return each.result()
                    except _Refused as error:
                        refused[error.manager] = str(error)
        raise ConnectionError("; ".join(refused.values()))
    except TimeoutError:
        raise Silence(f"{', '.join(managers)}: no answer in time") from None
    finally:
        for each in trying:
            each.cancel()
        await asyncio.gather(*trying, return_exceptions=True)


async def _knock(manager: str) -> str:
    host, port = parse_host_port(manager, 0, "manager")
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise _Refused(manager, error) from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return manager
