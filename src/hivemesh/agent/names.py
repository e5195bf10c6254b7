"""What names mean on this node: the view told to the resolver, each sandbox admitted to it, each container's files.

A view counts as applied once the kernel and the resolver hold it. Names follow the kernel: whoever learns an address
can reach it. The resolver never holds up the kernel; while it does not follow, that counts as one thing pending.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

from hivemesh.agent.files import SandboxFiles
from hivemesh.cnm.local import links_of
from hivemesh.cnm.node import ViewParts, leads_out
from hivemesh.dataplane.plan.bridge import NO_LOCALS, Locals
from hivemesh.dataplane.plan.names import sandbox_namespace
from hivemesh.dns.hostconf import HostConf, read_host_conf, wants_dots
from hivemesh.dns.names import names_of
from hivemesh.kernel import netns
from hivemesh.model.addr import parse_address
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.model.ids import NetworkID, TaskID
from hivemesh.model.task import Task
from hivemesh.wire.control import NetworkItem
from hivemesh.wire.resolver import Names, Sandbox

PATIENCE = 0.5
"""Seconds until a view that the kernel holds and the resolver does not is acknowledged as pending."""
ADMIT_TIMEOUT = 15.0
"""Seconds a new sandbox waits for the resolver, which may have to be started."""

Networks = Mapping[NetworkID, NetworkItem]


class Resolver(Protocol):
    """`agent.resolver.Resolver`, which says what is what."""

    revision: int
    failed: dict[str, str]

    def answer(self, networks: Mapping[NetworkID, Names]) -> None: ...
    def admit(self, sandbox: Sandbox) -> None: ...
    def forget(self, sandbox: str) -> None: ...
    async def dismiss(self, sandbox: str) -> None: ...
    def complete(self) -> None: ...
    def holds(self, revision: int) -> bool: ...
    async def until_held(self, revision: int, seconds: float) -> bool: ...
    async def run(self) -> None: ...
    async def dissolve(self) -> None: ...


class NodeNames:
    """`applied(revision, pending)` is called when the resolver holds what the kernel holds, and when it does not."""

    def __init__(self, resolver: Resolver, files: SandboxFiles, applied: Callable[[int, int], None]) -> None:
        self._resolver = resolver
        self._files = files
        self._on_applied = applied
        self._tables: dict[NetworkID, tuple[tuple[object, ...], Names]] = {}
        self._local: Mapping[NetworkID, Names] = {}  # of networks of this node
        self._inherited: set[TaskID] = set()  # sandboxes of an earlier daemon, whose executors did not ask yet
        self._last = (0, 0, 0)  # view: its revision, what is pending of it, and the resolver's revision
        self._late = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; names go on being answered."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resolver.run(), name="resolver")
            tasks.create_task(self._acknowledge_late(), name="acknowledge")

    async def dissolve(self) -> None:
        """The node leaves its swarm. `run` has ended."""
        await self._resolver.dissolve()

    # --- views ------------------------------------------------------------------------------------------------------

    def inherit(self, view: ViewParts) -> None:
        """Sandboxes that an earlier daemon made go on asking, before their executors ask for them."""
        for task in _alive(view):
            if netns.exists(sandbox_namespace(task)):
                self._inherited.add(task)

    def follow(self, view: ViewParts, *, all_known: bool) -> None:
        """Answer as `view` says. With `all_known`, sandboxes that nobody has admitted are forgotten."""
        tables = {}
        for network in view.networks.values():
            if not network.ingress:
                made_of = (network, view.services.get(network.id, ()), view.endpoints.get(network.id, ()))
                known = self._tables.get(network.id)
                tables[network.id] = known if known and known[0] == made_of else (made_of, names_of(*made_of))
        self._tables = tables
        self._answer()
        for task in self._inherited - _alive(view):  # remembered, and given up by the managers meanwhile
            self._inherited.discard(task)
            self._resolver.forget(task)
        for task in self._inherited:
            of = view.tasks[task].task
            networks = {
                a.network_id: view.networks[a.network_id] for a in of.attachments if a.network_id in view.networks
            }
            self._resolver.admit(asker(of, networks, read_host_conf()))
        if all_known:
            self._resolver.complete()

    def know(self, local: Mapping[NetworkID, Names]) -> None:
        """The names on networks of this node alone."""
        if local != self._local:
            self._local = local
            self._answer()

    def _answer(self) -> None:
        self._resolver.answer({network: names for network, (_, names) in self._tables.items()} | dict(self._local))

    def acknowledge(self, revision: int, pending: int) -> None:
        """The kernel holds view `revision` but for `pending` things; tell once the resolver does, too."""
        self._last = (revision, pending, self._resolver.revision)
        if self._resolver.holds(self._resolver.revision):
            self._on_applied(revision, pending)
        else:
            self._late.set()

    async def _acknowledge_late(self) -> None:
        while True:
            await self._late.wait()
            self._late.clear()
            await self._resolver.until_held(self._last[2], PATIENCE)
            revision, pending, told = self._last  # a later view may have come meanwhile
            if self._resolver.holds(told):
                self._on_applied(revision, pending)
            else:
                self._on_applied(revision, pending + 1)
                self._late.set()

    # --- sandboxes --------------------------------------------------------------------------------------------------

    def inherit_local(self, task: Task, networks: Networks, local: Locals) -> None:
        """A plain container's sandbox that an earlier daemon made goes on asking."""
        self._resolver.admit(asker(task, networks, read_host_conf(), local))

    async def admit(self, task: Task, networks: Networks, local: Locals = NO_LOCALS) -> None:
        """The sandbox is wired, and its container may begin once this returns. Raises `Unavailable`."""
        self._inherited.discard(task.id)
        self._resolver.admit(asker(task, networks, read_host_conf(), local))
        held = await self._resolver.until_held(self._resolver.revision, ADMIT_TIMEOUT)
        why = self._resolver.failed.get(task.id) or ("" if held else "hivemesh-resolver does not answer; see the log")
        if why:
            raise Unavailable(f"names cannot be resolved in the sandbox: {why}")

    async def dismiss(self, task: TaskID) -> None:
        """The sandbox's namespace may be removed when this returns: no socket keeps it alive."""
        self._inherited.discard(task)
        await self._resolver.dismiss(task)

    def files(
        self,
        task: Task,
        networks: Networks,
        hostname: str,
        local: Locals = NO_LOCALS,
        into: SandboxFiles | None = None,
    ) -> dict[str, str]:
        """Write the container's files (elsewhere than tasks' with `into`); by the path where each belongs in it."""
        return (into or self._files).write(task, {**networks, **local}, read_host_conf(), hostname)


def _alive(view: ViewParts) -> set[TaskID]:
    return {task for task, item in view.tasks.items() if not item.task.status.state.dead}


def asker(task: Task, networks: Networks, host: HostConf, local: Locals = NO_LOCALS) -> Sandbox:
    """The sandbox of `task` as the resolver should see it; `host` is the node's own resolv.conf."""
    dns = task.spec.container_spec.dns_config
    nameservers = []
    for text in dns.nameservers if dns else ():
        with contextlib.suppress(Invalid):
            nameservers.append(parse_address(text))
    looked_at = [links_of(task)] if task.local.links else []
    for attachment in task.attachments:
        network = networks.get(attachment.network_id) or local.get(attachment.network_id)
        if network is not None and not network.ingress:
            looked_at.append(network.id)
    return Sandbox(
        id=task.id,
        netns=netns.path(sandbox_namespace(task.id)),
        networks=tuple(looked_at),
        nameservers=tuple(nameservers),
        forward=leads_out(task, networks.values(), local),
        ndots=wants_dots(host, dns),
    )
