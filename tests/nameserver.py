"""A name server of a test: it answers as told, over UDP and TCP, and remembers what it was asked."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from hivemesh.dns.forward import Forwarder
from hivemesh.wire.resolver import Sandbox

Answer = Callable[[dns.message.Message], dns.message.Message | list[bytes] | None]


def record(
    query: dns.message.Message, text: str = "192.0.2.1", *, ttl: int = 60, kind: str = "A"
) -> dns.message.Message:
    """The plain answer: one record for the name asked for."""
    answer = dns.message.make_response(query)
    answer.flags |= dns.flags.RA
    answer.answer.append(dns.rrset.from_text(query.question[0].name, ttl, "IN", kind, text))
    return answer


def code(query: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
    """An answer that says nothing else."""
    answer = dns.message.make_response(query)
    answer.set_rcode(rcode)
    return answer


class NameServer(asyncio.DatagramProtocol):
    """`answer` makes the answer to each question: a message, raw messages, or None for silence."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[dns.message.Message] = []
        self.peers: list[tuple[str, int]] = []
        self.connections = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self.peers.append(addr)
        for message in self._answers(data):
            self._transport.sendto(message, addr)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(2))
                for message in self._answers(await reader.readexactly(size)):
                    writer.write(len(message).to_bytes(2) + message)
                if not self.keep_open:
                    break
        writer.close()

    keep_open = True

    def _answers(self, data: bytes) -> list[bytes]:
        query = dns.message.from_wire(data)
        self.asked.append(query)
        answer = self.answer(query)
        if answer is None:
            return []
        return answer if isinstance(answer, list) else [answer.to_wire(max_size=65535)]


def free_port() -> int:
    """A port that nothing has, on any loopback address and in either transport; none that the kernel gives to clients
    (ip_local_port_range begins at 32768), since one of those may be taken at any moment.
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            with contextlib.suppress(OSError):
                udp.bind(("0.0.0.0", port))
                tcp.bind(("0.0.0.0", port))
                return port


@contextlib.asynccontextmanager
async def serving(address: str, port: int, answer: Answer) -> AsyncIterator[NameServer]:
    """Listen on `address` with both transports while the context is open."""
    loop = asyncio.get_running_loop()
    server = NameServer(answer)
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=(address, port))
    streams: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.add(writer)
        await server.serve_stream(reader, writer)

    try:
        listener = await asyncio.start_server(serve, address, port)
    except OSError:
        transport.close()
        raise
    try:
        yield server
    finally:
        transport.close()
        listener.close()
        for writer in streams:
            writer.close()
        await listener.wait_closed()


async def forwarded(forwarder: Forwarder, query: bytes, sandbox: Sandbox, *, tcp: bool = False) -> bytes | None:
    """What `forwarder` finds, known or asked for."""
    found: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def told(answer: bytes | None) -> None:
        if not found.done():  # who waited may have given up
            found.set_result(answer)

    return forwarder.ask(query, sandbox, told, tcp=tcp) or await found
