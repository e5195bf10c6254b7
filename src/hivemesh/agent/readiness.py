"""Before the first connection and after the last: when a task may be used, told to stop, and taken off its networks.

A task without a health check may be used once it listens where its clients will ask.

A process that has begun does not listen yet, and who is sent to it meanwhile is refused. A health check tells; where
there is none, the kernel's own table of open ports does. It is only looked at, so no server meets a connection that
nobody meant.

What is waited for:
- all ports that the service publishes;
- where it publishes none but is on a network: one of the ports that its image exposes, as long as it is the image's own
  program that runs (another command has other ports, or none).

It is a courtesy with an end: a program may open its ports late, or never (a stand-by, a redirection to another port).
`--no-healthcheck` says that there is nothing to wait for at all.

Somebody may still come to a task that nobody is sent to any more: a connection that was sent here just before is in a
queue of the kernel, or waits for its client's part of the handshake. Most servers close their door at the stop signal,
and cut that one off. So the signal waits for a moment, and then until nobody is at the door.

Of a process that has ended, the kernel still delivers the last bytes of each connection, unless its namespace goes:
that waits for them too, and so does the news of its end, which makes the other nodes forget the way.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from hivemesh.clock import Clock
from hivemesh.engine.api import ImageFacts
from hivemesh.kernel.listening import Door
from hivemesh.model.task import Task

LISTEN_TIMEOUT = 5.0
"""Seconds after its start in which a task is expected to listen. Long enough for servers that load and go; those that
take longer have health checks."""
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.1
"""Seconds between looks for open ports, doubled each time."""
PAUSE = 0.01
"""Seconds between looks at connections."""
ON_THE_WAY = 0.1
"""Seconds in which a packet that was on its way between nodes has come, on busy machines too."""
HANDSHAKE_TIMEOUT = 1.0
"""Seconds more for clients that are far away."""
DELIVERY_TIMEOUT = 2.0
"""Seconds for the last bytes of an ended process: those of clients that have vanished never arrive."""
SEEN = ("tcp", "udp")
"""Protocols whose ports the kernel's tables show."""

Look = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Doors:
    """Ports that a task should open: every one of `all`, and one of `any` if there are some."""

    all: frozenset[Door] = frozenset()
    any: frozenset[Door] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.all or self.any)

    def __str__(self) -> str:
        return ", ".join(f"{port}/{protocol}" for protocol, port in sorted(self.all)) or " or ".join(
            f"{port}/{protocol}" for protocol, port in sorted(self.any)
        )

    def are_open(self, found: frozenset[Door]) -> bool:
        return self.all <= found and (not self.any or bool(self.any & found))


def doors_of(task: Task, image: ImageFacts) -> Doors:
    """What to wait for; nothing for a task that nobody reaches, or that was said to need no check."""
    spec = task.spec.container_spec
    if spec.healthcheck is not None and spec.healthcheck.test[:1] == ("NONE",):
        return Doors()
    published = frozenset((port.protocol, port.target_port) for port in task.ports if port.protocol in SEEN)
    if published:
        return Doors(all=published)
    own_program = not spec.command and (not spec.args or image.entrypoint)
    if task.attachments and own_program:
        return Doors(any=frozenset(door for door in image.exposed if door[0] in SEEN))
    return Doors()


async def until_open(doors: Doors, look: Callable[[], frozenset[Door]], clock: Clock) -> bool:
    """Whether they were open in time; returns as soon as they are. `look` tells what is open."""
    until, pause = clock.steady() + LISTEN_TIMEOUT, FIRST_PAUSE
    while not doors.are_open(look()):
        if clock.steady() >= until:
            return False
        await clock.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)
    return True


async def until_nobody_calls(look: Look, clock: Clock) -> None:
    """Before the stop signal of a task that no node sends connections to. `look` tells if somebody is at the door."""
    await clock.sleep(ON_THE_WAY)
    await _while(look, HANDSHAKE_TIMEOUT, clock)


async def until_delivered(look: Look, clock: Clock) -> None:
    """Before an ended process's namespace goes. `look` tells if some of its last words are still on their way."""
    await _while(look, DELIVERY_TIMEOUT, clock)


async def _while(look: Look, patience: float, clock: Clock) -> None:
    until = clock.steady() + patience
    while clock.steady() < until and await asyncio.to_thread(look):  # a busy server's table is long
        await clock.sleep(PAUSE)
