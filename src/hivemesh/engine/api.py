"""The Engine Protocol: whatever runs a task's process inside a sandbox that is already wired."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hivemesh.model.container import ContainerSpec, HealthConfig, LogDriver
from hivemesh.model.errors import HivemeshError
from hivemesh.model.service import Resources

TASK_LABEL = "com.docker.swarm.task.id"


class EngineError(HivemeshError):
    """The engine refused or failed, in its own words."""


class ImageNotFound(EngineError):
    """The image is not here and cannot be pulled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """A container to create, in a namespace that exists (`/run/netns/<name>`)."""

    name: str
    spec: ContainerSpec
    resources: Resources
    labels: dict[str, str]
    netns: str  # path
    hostname: str
    log_driver: LogDriver | None = None
    files: Mapping[str, str] = field(default_factory=dict)  # path inside, to the file of ours that stands there
    secrets: Mapping[str, str] = field(default_factory=dict)  # likewise, files in memory: for reading only


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What an image says of the containers made from it."""

    health: HealthConfig | None = None
    exposed: tuple[tuple[str, int], ...] = ()  # protocol, port
    entrypoint: bool = False  # arguments are for its own program, whatever they are


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerInfo:
    """A container of ours as the engine sees it."""

    id: str
    name: str
    labels: dict[str, str]
    state: str  # created, initialized (in its namespaces, waiting for the start), running, exited
    pid: int = 0
    exit_code: int = 0
    error: str = ""  # the engine's words for a start that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended."""

    code: int
    output: str  # both streams, as they came


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    name: str  # "podman", "process"
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Which part of a container's output."""

    stdout: bool = True
    stderr: bool = True
    follow: bool = False  # go on with what it writes from now on, until it ends
    since: float = 0.0  # unix seconds
    tail: int = -1  # the last lines only; -1: all


@dataclass(frozen=True, slots=True)
class Output:
    """One line, with its newline."""

    stream: int  # 1 standard output, 2 standard error
    when: int  # unix nanoseconds
    text: bytes


class Engine(Protocol):
    """Every call is repeatable: what is already so is left alone, what is already gone is fine."""

    async def info(self) -> EngineInfo: ...

    async def ensure_image(self, image: str, credential: str = "") -> None:
        """Pull unless it is here; `credential` (an `X-Registry-Auth`) is for its registry only.

        Raises `ImageNotFound` with the engine's reason.
        """
        ...

    async def describe(self, image: str) -> ImageFacts:
        """What an image says of itself; `ensure_image` was called."""
        ...

    async def create(self, request: ContainerRequest) -> str:
        """The container's id; an existing container of that name is returned as it is."""
        ...

    async def start(self, container: str) -> ContainerInfo:
        """Returns once the process runs. Raises `EngineError`."""
        ...

    async def ended(self, container: str) -> None:
        """Returns once the process has ended, which may be long before its exit code is known."""
        ...

    async def wait(self, container: str) -> int:
        """The exit code, once the process has ended."""
        ...

    async def run(self, container: str, command: Sequence[str], timeout: float) -> Ran:
        """Run a command in a running container. Raises `TimeoutError` after `timeout` seconds, with the command killed,
        and `EngineError` when the container does not run.
        """
        ...

    async def stop(self, container: str, signal: str, grace: float) -> None:
        """Signal (empty: the image's own, else SIGTERM), wait up to `grace` seconds, kill."""
        ...

    async def remove(self, container: str) -> None:
        """Kill if need be, and forget."""
        ...

    async def list(self, label: str = TASK_LABEL) -> list[ContainerInfo]:
        """All containers that carry this label, running or not."""
        ...

    def logs(self, container: str, options: LogOptions) -> AsyncIterator[Output]:
        """What a container wrote, in order. Raises `EngineError`."""
        ...

    def events(self) -> AsyncIterator[str]:
        """Ids of containers of ours that died, as it happens; ends when the engine goes away."""
        ...

    async def close(self) -> None: ...
