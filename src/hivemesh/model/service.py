"""Services: the spec in the Docker Engine API's shape (field names are the API's), and what allocation granted.

What a container is made from stands in `model.container`; a service is described with both.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from hivemesh.model.addr import Interface
from hivemesh.model.container import ConfigReference as ConfigReference
from hivemesh.model.container import ContainerSpec as ContainerSpec
from hivemesh.model.container import DNSConfig as DNSConfig
from hivemesh.model.container import FileTarget as FileTarget
from hivemesh.model.container import HealthConfig as HealthConfig
from hivemesh.model.container import LogDriver
from hivemesh.model.container import Mount as Mount
from hivemesh.model.container import Nanoseconds as Nanoseconds
from hivemesh.model.container import SecretReference as SecretReference
from hivemesh.model.container import Spec as Spec
from hivemesh.model.generic import GenericResource
from hivemesh.model.ids import NetworkID, ServiceID

Protocol = Literal["tcp", "udp", "sctp"]
PublishMode = Literal["ingress", "host"]

DYNAMIC_PORTS = range(30000, 32768)
"""Docker: published ports chosen by the allocator."""


class PortConfig(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """A published port. `published_port` 0 asks the allocator to choose."""

    name: str = msgspec.field(default="")
    protocol: Protocol = "tcp"
    target_port: int = 0
    published_port: int = 0
    publish_mode: PublishMode = "ingress"


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """The `number` by which the mesh knows a published `port` whose own number is another service's there."""

    protocol: Protocol
    port: int
    number: int


def number_inside(port: PortConfig, doors: Iterable[Door]) -> int:
    """How the mesh calls `port`, between the node where a connection comes in and the task."""
    for door in doors:
        if (door.protocol, door.port) == (port.protocol, port.published_port):
            return door.number
    return port.published_port


class EndpointSpec(Spec, frozen=True, kw_only=True):
    mode: Literal["vip", "dnsrr"] = "vip"
    ports: tuple[PortConfig, ...] = ()


class ResourceLimits(Spec, frozen=True, kw_only=True):
    nano_cpus: int = msgspec.field(default=0, name="NanoCPUs")
    memory_bytes: int = 0
    pids: int = 0


class Reservations(Spec, frozen=True, kw_only=True):
    """What a node must have left for a task. Generic resources are asked for by number: `DiscreteResourceSpec`."""

    nano_cpus: int = msgspec.field(default=0, name="NanoCPUs")
    memory_bytes: int = 0
    generic_resources: tuple[GenericResource, ...] = ()


class Resources(Spec, frozen=True, kw_only=True):
    """`swap_bytes` come on top of the limit of memory (-1: without end); None means what the kernel does by itself."""

    limits: ResourceLimits | None = None
    reservations: Reservations | None = None
    swap_bytes: int | None = None
    memory_swappiness: int | None = None


class RestartPolicy(Spec, frozen=True, kw_only=True):
    condition: Literal["none", "on-failure", "any"] = "any"
    delay: Nanoseconds = 5_000_000_000
    max_attempts: int = 0
    window: Nanoseconds = 0


class NetworkAttachmentConfig(Spec, frozen=True, kw_only=True):
    """A network of a task; `target` is an id once stored."""

    target: str = ""
    aliases: tuple[str, ...] = ()
    driver_opts: dict[str, str] = {}


class Platform(Spec, frozen=True, kw_only=True):
    architecture: str = ""
    os: str = msgspec.field(default="", name="OS")


class SpreadOver(Spec, frozen=True, kw_only=True):
    """Evenly over the values of something nodes have, such as `node.labels.zone`."""

    spread_descriptor: str = ""


class PlacementPreference(Spec, frozen=True, kw_only=True):
    spread: SpreadOver | None = None


class Placement(Spec, frozen=True, kw_only=True):
    """`preferences` go from the outermost to the innermost: over zones, then over the racks of each zone."""

    constraints: tuple[str, ...] = ()
    preferences: tuple[PlacementPreference, ...] = ()
    max_replicas: int = 0
    platforms: tuple[Platform, ...] = ()


class TaskSpec(Spec, frozen=True, kw_only=True):
    container_spec: ContainerSpec = ContainerSpec()
    resources: Resources = Resources()
    restart_policy: RestartPolicy = RestartPolicy()
    placement: Placement = Placement()
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    log_driver: LogDriver | None = None
    force_update: int = 0
    runtime: str = "container"


ModeName = Literal["replicated", "global", "replicated-job", "global-job"]


class Replicated(Spec, frozen=True, kw_only=True, omit_defaults=False):
    replicas: int = 1


class Global(Spec, frozen=True, kw_only=True):
    """One task on each node that fits."""


class ReplicatedJob(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """So many tasks run to their end, so many at a time. None: 1; `total_completions` None: as many as at a time."""

    max_concurrent: int | None = None
    total_completions: int | None = None


class GlobalJob(Spec, frozen=True, kw_only=True):
    """One task on each node that fits runs to its end."""


class ServiceMode(Spec, frozen=True, kw_only=True):
    """Exactly one is set; none means one replica."""

    replicated: Replicated | None = None
    global_: Global | None = msgspec.field(default=None, name="Global")
    replicated_job: ReplicatedJob | None = None
    global_job: GlobalJob | None = None

    @property
    def name(self) -> ModeName:
        """As `docker service create --mode` has it."""
        if self.global_ is not None:
            return "global"
        if self.replicated_job is not None:
            return "replicated-job"
        return "global-job" if self.global_job is not None else "replicated"


class UpdateConfig(Spec, frozen=True, kw_only=True, omit_defaults=False):
    parallelism: int = 1
    delay: Nanoseconds = 0
    failure_action: Literal["pause", "continue", "rollback"] = "pause"
    monitor: Nanoseconds = 5_000_000_000
    max_failure_ratio: float = 0.0
    order: Literal["stop-first", "start-first"] = "stop-first"


class ServiceSpec(Spec, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = {}
    task_template: TaskSpec = TaskSpec()
    mode: ServiceMode = ServiceMode()
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    endpoint_spec: EndpointSpec = EndpointSpec()

    @property
    def replicas(self) -> int:
        """The copies wanted of a replicated service."""
        return self.mode.replicated.replicas if self.mode.replicated else 1

    @property
    def is_job(self) -> bool:
        """Its tasks run to an end, and that is that."""
        return self.mode.replicated_job is not None or self.mode.global_job is not None

    @property
    def is_global(self) -> bool:
        """Its tasks are numbered by nodes, not by slots."""
        return self.mode.global_ is not None or self.mode.global_job is not None

    @property
    def completions(self) -> tuple[int, int]:
        """Of a replicated job: the tasks at a time, and how many have to complete."""
        job = self.mode.replicated_job or ReplicatedJob()
        at_once = 1 if job.max_concurrent is None else job.max_concurrent
        return at_once, at_once if job.total_completions is None else job.total_completions


Scheduler = Literal["rr", "source", "maglev", "lc"]
"""How connections are spread over backends, weights respected: in turn; by the client's address; by a consistent hash
of the client's address; to the backend with the fewest connections (IPVS only)."""


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How a service is balanced: its labels, read. An empty engine means: the node's own choice."""

    scheduler: Scheduler = "rr"
    engine: Literal["", "nftables", "ipvs"] = ""


class VIP(msgspec.Struct, frozen=True, kw_only=True):
    """The virtual addresses of a service on one network (one per family the network has)."""

    network_id: NetworkID
    addresses: tuple[Interface, ...]


UpdateState = Literal["updating", "paused", "completed", "rollback_started", "rollback_paused", "rollback_completed"]


class UpdateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the last change of a service's tasks goes."""

    state: UpdateState
    message: str
    started: float  # unix seconds
    completed: float = 0.0


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service. `ports`, `doors` and `vips` are the allocator's, `update_status` the updater's, `spec` the user's.

    Each specification that makes tasks has a number; going back to an earlier specification goes back to its number, so
    that tasks of it that still run are right again.
    """

    id: ServiceID
    spec: ServiceSpec
    version: int = 0
    stale_version: int = 0  # who has read this version, or one before it, does not know `spec`
    spec_version: int = 0  # the number of `spec`: another one when tasks must be replaced
    previous_spec: ServiceSpec | None = None
    previous_version: int = 0  # the number of `previous_spec`
    last_version: int = 0  # the highest number given out
    update_status: UpdateStatus | None = None
    iteration: int = 0  # of a job: how often it was started anew
    executed: float = 0.0  # when the present iteration of a job began, unix seconds
    created: float = 0.0
    updated: float = 0.0
    ports: tuple[PortConfig, ...] = ()  # with real published ports
    doors: tuple[Door, ...] = ()  # of those of them that the mesh knows by another number
    vips: tuple[VIP, ...] = ()
    error: str = ""  # why allocation failed, if it did
