"""Tasks: one attempt to run one copy of a service. States only move forward."""

from enum import IntEnum

import msgspec

from hivemesh.model.addr import MAC, Interface
from hivemesh.model.container import LogDriver
from hivemesh.model.generic import GenericResource
from hivemesh.model.ids import EndpointID, NetworkID, NodeID, ServiceID, TaskID
from hivemesh.model.local import Local
from hivemesh.model.service import Door, PortConfig, TaskSpec

EVICTED_MESSAGE, EVICTED = "task rejected by constraint enforcer", "assigned node no longer meets constraints"
"""Swarm's words for a task whose node changed under it."""


class TaskState(IntEnum):
    """Docker's states and numbers; the order is the meaning."""

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800  # desired only
    ORPHANED = 832

    @property
    def dead(self) -> bool:
        """Nothing of the task runs any more."""
        return self > TaskState.RUNNING


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's latest report (until assignment: the manager's)."""

    timestamp: float = 0.0
    state: TaskState = TaskState.NEW
    message: str = "created"
    err: str = ""
    container_id: str = ""
    pid: int = 0
    exit_code: int = 0
    ports: tuple[PortConfig, ...] = ()  # host-mode ports that are bound
    unhealthy: bool = False  # it still runs, and is about to be stopped for that


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint granted to a task (or a node): its network, addresses (one per family) and MAC."""

    endpoint_id: EndpointID
    network_id: NetworkID
    addresses: tuple[Interface, ...]
    mac: MAC
    priority: int = 0  # on networks of one node: the highest is the way out


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """`spec` is copied from the service, `desired` is the orchestrator's wish, `status` the agent's report."""

    id: TaskID
    service_id: ServiceID
    service_name: str
    slot: int
    spec: TaskSpec
    spec_version: int = 0  # of the service when the task was made
    version: int = 0
    created: float = 0.0
    updated: float = 0.0
    node_id: NodeID | None = None
    desired: TaskState = TaskState.RUNNING
    status: TaskStatus = TaskStatus()
    ports: tuple[PortConfig, ...] = ()  # copied from the service's allocated ports
    doors: tuple[Door, ...] = ()  # likewise
    attachments: tuple[Attachment, ...] = ()  # ingress first, then as the spec lists them
    generic: tuple[GenericResource, ...] = ()  # what it got of its node's generic resources
    log_driver: LogDriver | None = None  # of a task whose spec names none: the swarm's as of when it was made
    evicted: bool = False  # its node no longer fits: it runs until it was stopped, and is rejected then
    start_after: float = 0.0  # unix seconds; a restarted slot waits for its delay
    started: float = 0.0  # when it was first reported running, unix seconds
    iteration: int = 0  # of the job it belongs to
    container: str = ""  # of an attachment: the name of the plain container that joins the networks of `spec`
    local: Local = Local()  # of a plain container: what only its node knows

    @property
    def attached(self) -> bool:
        """Nobody's replica: the place of a plain container (`docker run --network`) on swarm networks."""
        return bool(self.container)

    @property
    def name(self) -> str:
        """Docker's container name of the task: `web.1.<task id>`, with the node's id where there is no slot; a plain
        container has its own.
        """
        return self.container or f"{self.service_name}.{self.slot or self.node_id or 0}.{self.id}"

    @property
    def placed(self) -> bool:
        """Its node was told of it, or is about to be. A task of a global service has a node before that."""
        return self.node_id is not None and self.status.state >= TaskState.ASSIGNED

    @property
    def wanted(self) -> bool:
        """The task should be, or become, running."""
        return self.desired <= TaskState.RUNNING and not self.status.state.dead

    @property
    def serving(self) -> bool:
        """New connections may reach the task."""
        usable = self.status.state == TaskState.RUNNING and not self.status.unhealthy
        return usable and self.desired <= TaskState.RUNNING

    @property
    def stopped(self) -> bool:
        """It ended because somebody wanted it to."""
        return self.status.state == TaskState.SHUTDOWN or (self.evicted and self.status.state == TaskState.REJECTED)

    @property
    def ended(self) -> bool:
        """By itself, or refused; not because somebody wanted it to."""
        by_itself = self.status.state in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)
        return by_itself and not self.stopped

    def with_report(self, report: TaskStatus) -> "Task":
        """The task after `report`; a report of an earlier state changes nothing."""
        if self.evicted and report.state == TaskState.SHUTDOWN:
            report = msgspec.structs.replace(report, state=TaskState.REJECTED, message=EVICTED_MESSAGE, err=EVICTED)
        if report.state < self.status.state:
            return self
        started = self.started or (report.timestamp if report.state == TaskState.RUNNING else 0.0)
        return msgspec.structs.replace(self, status=report, started=started)
