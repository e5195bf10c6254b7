"""When a task without a health check may be used: once it listens where its clients will ask.

A process that has begun does not listen yet, and who is sent to it meanwhile is refused. A health check tells; where
there is none, the kernel's own table of open ports does. It is only looked at, so no server meets a connection that
nobody meant.

What is waited for:
- all ports that the service publishes;
- where it publishes none but is on a network: one of the ports that its image exposes, as long as it is the image's own
  program that runs (another command has other ports, or none).

It is a courtesy with an end: a program may open its ports late, or never (a stand-by, a redirection to another port).
`--no-healthcheck` says that there is nothing to wait for at all.
"""

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
"""Seconds between looks, doubled each time."""
SEEN = ("tcp", "udp")
"""Protocols whose ports the kernel's tables show."""


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
    until, pause = clock.now() + LISTEN_TIMEOUT, FIRST_PAUSE
    while not doors.are_open(look()):
        if clock.now() >= until:
            return False
        await clock.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)
    return True
