"""Telling systemd that the daemon is ready, and that it is alive (sd_notify(3)). Without systemd nothing is told."""

import asyncio
import os
import socket
from dataclasses import dataclass

READY, ALIVE = b"READY=1", b"WATCHDOG=1"


@dataclass(frozen=True, slots=True)
class Supervisor:
    """Who started us and wants to hear of us."""

    address: str  # of a unix socket; with @ in front an abstract one
    period: float  # seconds between signs of life; 0: none are wanted


def supervisor() -> Supervisor | None:
    """From the environment, which our children are not to inherit: they are not the ones who should tell."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    process, period = os.environ.pop("WATCHDOG_PID", ""), os.environ.pop("WATCHDOG_USEC", "")
    wanted = period.isdigit() and process in ("", str(os.getpid()))
    return Supervisor(address, int(period) / 1e6 / 3 if wanted else 0.0) if address else None


async def tell(supervisor: Supervisor | None, ready: asyncio.Event) -> None:
    """Once `ready` is set, until cancelled. A loop that is stuck tells nothing, and is started anew."""
    if supervisor is None:
        return
    await ready.wait()
    _send(supervisor, READY)
    while supervisor.period:
        _send(supervisor, ALIVE)
        await asyncio.sleep(supervisor.period)


def _send(supervisor: Supervisor, words: bytes) -> None:
    name = supervisor.address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.sendto(words, "\0" + name[1:] if name.startswith("@") else name)
        except OSError:
            return  # systemd is being replaced; it asks again by its own time limits
