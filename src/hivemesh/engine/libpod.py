"""Podman's own REST API (libpod, 4.0 and later) as values: requests built, answers read; no sockets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hivemesh.engine import logdriver
from hivemesh.engine.api import ContainerInfo, ContainerRequest, EngineError, ImageFacts, Output
from hivemesh.engine.mounts import mounts_of
from hivemesh.engine.processes import signal_number
from hivemesh.model.container import HealthConfig, LogDriver, Privileges, Ulimit
from hivemesh.model.privilege import UNLIMITED
from hivemesh.wire.logs import nanoseconds

PREFIX = "/v4.0.0/libpod"
CPU_PERIOD = 100_000
"""Microseconds; Docker turns NanoCPUs into a quota of this period."""
SANDBOX_SYSCTLS = {"net.ipv4.ping_group_range": "0 2147483647"}
"""As every sandbox has it. Podman's default is `0 0`, written into the sandbox when the container starts."""
HOSTS, RESOLV_CONF = "/etc/hosts", "/etc/resolv.conf"
"""Podman writes both for a container, unless told that the image has its own."""
INFINITY = (1 << 64) - 1
"""RLIM_INFINITY."""
RUNNING = {"running", "paused", "stopping"}
ENDED = {"exited", "stopped"}
INITIALIZED = "initialized"
"""It has its namespaces, and its process waits for the start."""


class Listed(msgspec.Struct, frozen=True, rename="pascal"):
    """One of `GET /containers/json`."""

    id: str
    names: list[str] | None = None
    labels: dict[str, str] | None = None
    state: str = ""
    pid: int = 0
    exit_code: int = 0


class State(msgspec.Struct, frozen=True, rename="pascal"):
    status: str = ""
    pid: int = 0
    exit_code: int = 0
    error: str = ""


class Config(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None
    stop_signal: int = 0


class Inspected(msgspec.Struct, frozen=True, rename="pascal"):
    """`GET /containers/{id}/json`."""

    id: str
    name: str
    state: State
    config: Config


class ImageConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """`Config` of an image."""

    exposed_ports: dict[str, Any] | None = None  # by "port/protocol", or "port" alone for TCP
    entrypoint: list[str] | None = None


class Image(msgspec.Struct, frozen=True, rename="pascal"):
    """`GET /images/{name}/json`."""

    healthcheck: HealthConfig | None = None
    config: ImageConfig | None = None

    @property
    def facts(self) -> ImageFacts:
        config = self.config or ImageConfig()
        pairs = [entry.partition("/") for entry in config.exposed_ports or ()]
        exposed = tuple((protocol or "tcp", int(port)) for port, _, protocol in pairs if port.isdecimal())
        return ImageFacts(health=self.healthcheck, exposed=exposed, entrypoint=bool(config.entrypoint))


class Volume(msgspec.Struct, frozen=True, rename="pascal"):
    """`GET /volumes/{name}/json`."""

    driver: str = ""
    mountpoint: str = ""
    options: dict[str, str] | None = None


class Created(msgspec.Struct, frozen=True, rename="pascal"):
    """The answer to `POST /containers/create`."""

    id: str
    warnings: list[str] | None = None


class ExecSession(msgspec.Struct, frozen=True, rename="pascal"):
    """`GET /exec/{id}/json`."""

    running: bool = False
    pid: int = 0
    exit_code: int = 0


class Problem(msgspec.Struct, frozen=True):
    """The body of every refusal."""

    message: str = ""
    cause: str = ""


class PullLine(msgspec.Struct, frozen=True):
    """A line of the stream that a pull answers with."""

    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was found or made on this machine before a container is created."""

    image: str  # by the name it has here
    images: Mapping[str, str] = field(default_factory=dict)  # likewise, of those that are mounted
    subpaths: Mapping[str, str] = field(default_factory=dict)  # of mounts that are a part of a volume: target, path
    seccomp: str = ""  # path of the profile
    limits: Mapping[str, int] = field(default_factory=dict)  # of what Podman would raise further than it may


def create_body(request: ContainerRequest, prepared: Prepared) -> dict[str, Any]:
    """The SpecGenerator that makes a container in the namespace at `request.netns`. Raises `EngineError`."""
    spec = request.spec
    body: dict[str, Any] = {
        "name": request.name,
        "image": prepared.image,
        "labels": request.labels,
        "netns": {"nsmode": "path", "value": request.netns},
        "env": dict(_variable(entry) for entry in spec.env),
        "httpproxy": False,  # the daemon's own proxy settings are no business of a container
        "log_configuration": logdriver.configuration(request.log_driver or LogDriver()),
        "stop_timeout": round(spec.stop_grace_period / 1e9),
        "terminal": spec.tty,
        "stdin": spec.open_stdin,
        "read_only_filesystem": spec.read_only,
        "healthconfig": {"Test": ["NONE"]},  # Podman's own checks need systemd's timers: the agent makes them
        **mounts_of(request, prepared.subpaths, prepared.images),
        **_privileges(spec.privileges or Privileges(), prepared.seccomp),
    }
    if HOSTS in request.files:
        body["use_image_hosts"] = True
    else:
        body["hostadd"] = [f"{name}:{address}" for address, *names in map(str.split, spec.hosts) for name in names]
    if RESOLV_CONF in request.files:
        body["use_image_resolve_conf"] = True
    if spec.command:
        body["entrypoint"] = spec.command
    if spec.args:
        body["command"] = spec.args
    if spec.stop_signal:
        try:
            body["stop_signal"] = signal_number(spec.stop_signal)
        except ValueError as error:
            raise EngineError(str(error)) from None
    optional = {
        "hostname": request.hostname,  # else the engine's choice: the container's short id
        "user": spec.user,
        "groups": spec.groups,
        "work_dir": spec.dir,
        "init": spec.init,
        "cap_add": spec.capability_add,
        "cap_drop": spec.capability_drop,
        "sysctl": SANDBOX_SYSCTLS | spec.sysctls,
        "oom_score_adj": spec.oom_score_adj,
        "r_limits": _ulimits(spec.ulimits, prepared.limits),
    }
    body.update({name: value for name, value in optional.items() if value})
    limits = _limits(request)
    if limits:
        body["resource_limits"] = limits
    return body


def info_of(container: Inspected) -> ContainerInfo:
    return ContainerInfo(
        id=container.id,
        name=container.name,
        labels=container.config.labels or {},
        state=_state(container.state.status),
        pid=container.state.pid,
        exit_code=container.state.exit_code,
        error=container.state.error,
    )


def info_of_listed(container: Listed) -> ContainerInfo:
    return ContainerInfo(
        id=container.id,
        name=container.names[0] if container.names else "",
        labels=container.labels or {},
        state=_state(container.state),
        pid=container.pid,
        exit_code=container.exit_code,
    )


def docker_reference(image: str) -> str:
    """The full name Docker means by `image`: `nginx` is `docker.io/library/nginx`.

    Podman would ask which registry is meant.
    """
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def words_of(body: bytes, status: int) -> str:
    """What the engine said, for people."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.MsgspecError:
        problem = Problem(message=body.decode(errors="replace").strip())
    return problem.message or problem.cause or f"podman answered {status} without a word"


def _state(status: str) -> str:
    if status in RUNNING:
        return "running"
    if status == INITIALIZED:
        return status
    return "exited" if status in ENDED else "created"


def _variable(entry: str) -> tuple[str, str]:
    name, _, value = entry.partition("=")
    return name, value


def demultiplexed(stream: bytes) -> bytes:
    """The output of an exec session. Its streams come in pieces: a byte for which, three of zero, four of length."""
    found, at = bytearray(), 0
    while at < len(stream):
        end = at + 8 + int.from_bytes(stream[at + 4 : at + 8])
        found += stream[at + 8 : end]
        at = end
    return bytes(found)


def output_of(stream: int, line: bytes) -> Output:
    """One piece of a log stream with timestamps; a line that was written in parts comes in parts."""
    stamp, _, text = line.partition(b" ")
    try:
        return Output(stream, nanoseconds(stamp.decode()), text)
    except ValueError:
        return Output(stream, 0, line)


def _ulimits(wanted: tuple[Ulimit, ...], most: Mapping[str, int]) -> list[dict[str, Any]]:
    """With the first of them, Podman forgets its settings about all others."""
    if not wanted:
        return []
    found = {name: Ulimit(name=name, soft=ceiling, hard=ceiling) for name, ceiling in most.items()}
    found |= {limit.name: limit for limit in wanted}

    def number(value: int) -> int:
        return INFINITY if value == UNLIMITED else value

    return [{"type": limit.name, "soft": number(limit.soft), "hard": number(limit.hard)} for limit in found.values()]


def _privileges(privileges: Privileges, profile: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if privileges.no_new_privileges:
        found["no_new_privileges"] = True
    if privileges.seccomp and privileges.seccomp.mode in ("unconfined", "custom"):
        found["seccomp_profile_path"] = profile or "unconfined"
    if privileges.app_armor and privileges.app_armor.mode == "disabled":
        found["apparmor_profile"] = "unconfined"
    if context := privileges.selinux_context:
        parts = {"user": context.user, "role": context.role, "type": context.type, "level": context.level}
        label = ["disable"] if context.disable else [f"{name}:{value}" for name, value in parts.items() if value]
        if label:
            found["selinux_opts"] = label
    return found


def _limits(request: ContainerRequest) -> dict[str, Any]:
    limits, reservations = request.resources.limits, request.resources.reservations
    found: dict[str, Any] = {}
    if limits and limits.nano_cpus:
        found["cpu"] = {"period": CPU_PERIOD, "quota": limits.nano_cpus * CPU_PERIOD // 1_000_000_000}
    memory = {}
    if limits and limits.memory_bytes:
        memory["limit"] = limits.memory_bytes
    if reservations and reservations.memory_bytes:
        memory["reservation"] = reservations.memory_bytes
    swap, swappiness = request.resources.swap_bytes, request.resources.memory_swappiness
    if swap is not None:
        memory["swap"] = swap if swap < 0 else swap + (limits.memory_bytes if limits else 0)
    if swappiness is not None and swappiness >= 0:
        memory["swappiness"] = swappiness
    if memory:
        found["memory"] = memory
    if limits and limits.pids:
        found["pids"] = {"limit": limits.pids}
    return found
