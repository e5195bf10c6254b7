"""What this node sends a manager for as long as somebody there reads it, each reader over a connection of its own."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

import aiohttp

from hivemesh.agent.identity import Identity
from hivemesh.pki import MANAGER_NAME

CONNECT_TIMEOUT = 5.0


class Streams:
    """Of one kind: each is posted to `/v1/<what>/<id>`, at most `most` at a time; who asks for more hears nothing."""

    def __init__(self, what: str, identity: Callable[[], Identity], most: int) -> None:
        self._what = what
        self._identity = identity
        self._most = most
        self._log = logging.getLogger(f"hivemesh.{what}")
        self._sending: dict[tuple[str, str], asyncio.Task[None]] = {}

    def begin(self, identifier: str, manager: str, pieces: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        """Send `pieces` to the manager (host:port), until they end or nobody wants them."""
        key = (manager, identifier)
        if key not in self._sending and len(self._sending) < self._most:
            sending = asyncio.create_task(self._send(identifier, manager, pieces()), name=f"{self._what} {identifier}")
            self._sending[key] = sending
            sending.add_done_callback(lambda _: self._sending.pop(key, None))

    def end(self, identifier: str, manager: str) -> None:
        """Nobody reads it any more."""
        if (sending := self._sending.get((manager, identifier))) is not None:
            sending.cancel()

    async def close(self) -> None:
        for sending in self._sending.values():
            sending.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)

    async def _send(self, identifier: str, manager: str, pieces: AsyncGenerator[bytes, None]) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        try:
            async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as http:
                async with http.post(
                    f"https://{manager}/v1/{self._what}/{identifier}",
                    data=pieces,
                    ssl=self._identity().client_context(),
                    server_hostname=MANAGER_NAME,
                ) as response:
                    if response.status >= 300:
                        self._log.info("the manager at %s wants %s %s no more", manager, self._what, identifier)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._log.info("cannot send %s to the manager at %s: %s", self._what, manager, error)
        finally:
            with suppress(RuntimeError):  # it is running: the connection's writer, which was told to end, ends it
                await pieces.aclose()
