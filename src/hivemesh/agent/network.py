"""The network of this node: namespaces as the view wants them, kept so whoever touches them.

Two ways lead to the kernel. A new view is applied in one pass, host first, then overlays, then `ingress_sbox`: what
changed since the last pass and nothing else, so that a new backend is there within milliseconds. The sandbox of a task
is wired when its executor asks for it. Neither waits for a container engine. Names follow the kernel (`names.py`).

What each namespace holds is in `namespaces.py`; what somebody else changes there is put right by `drift.py`.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial

from hivemesh.agent.connections import Connections
from hivemesh.agent.drift import Drift
from hivemesh.agent.facts import gather
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.firewalls import Firewalls
from hivemesh.agent.leases import Leases
from hivemesh.agent.lent import LentNetworks
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.names import NodeNames
from hivemesh.agent.namespaces import Kernel, Namespaces, marked
from hivemesh.agent.threads import KernelThreads
from hivemesh.clock import Clock
from hivemesh.cnm.local import names_on
from hivemesh.cnm.node import Planner, Sandbox, ViewParts, wants_gateway
from hivemesh.config import Counts
from hivemesh.dataplane.balancer.engines import BASE, Engine
from hivemesh.dataplane.differing import Difference
from hivemesh.dataplane.plan.bridge import PLAIN_HOST
from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.names import overlay_namespace, sandbox_namespace
from hivemesh.kernel import foreign, ipvs, listening, netns
from hivemesh.kernel.api import HOST, Bridge, NamespacePlan
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.meters import SLOW, Durations
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.ids import NetworkID, ServiceID, TaskID
from hivemesh.model.service import PortConfig
from hivemesh.model.task import Task

log = logging.getLogger("hivemesh.network")

RETRY_FIRST, RETRY_LAST = 0.2, 30.0
"""Seconds until what failed is tried again, doubled each time."""
TRUST_AFTER = 1.0
"""Seconds for which a remembered view may add to the kernel but take nothing away: the daemon may have been killed
before it wrote down its last one, and a manager that can be reached speaks sooner."""
ATTACH_TIMEOUT = 30.0
"""Seconds a task waits for its networks to come with the view (Docker's number)."""
WIRING_PAUSES = (0.05, 0.2, 0.5, 1.0, 0.0)
"""Seconds after each attempt to wire a sandbox that failed."""
PARALLEL_WIRINGS = 2
"""Sandboxes at a time; a pass for a new view slips in between."""
THREADS = PARALLEL_WIRINGS + 2
"""One for views, one for drift."""


class NodeNetwork:
    """`lost(task)` is called when a sandbox vanished under its task."""

    def __init__(
        self,
        kernel: Kernel,
        names: NodeNames,
        *,
        vtep: Address | None,
        balancer: Engine = BASE,
        hooks: SocketHooks | None = None,
        counts: Counts = "bytes",
        leases: Leases,
        clock: Clock,
        lost: Callable[[TaskID], None],
        local: LocalNetworks,
        lent: LentNetworks | None = None,
    ) -> None:
        """Without `vtep` the node is in no swarm: `local` is all there is. Without `hooks` no sockets are balanced; if
        given, `kernel` uses the same."""
        self.drift: Counter[str] = local.repairs.counts
        self.passes = Durations(SLOW)
        """From a view to a kernel that agrees with it."""
        self._names = names
        self._vtep = vtep
        self._balancer = balancer
        self._hooks = hooks
        self._counts = counts
        self._told_of_ipvs: set[ServiceID] = set()
        self._leases = leases
        self._local = local
        self._lent = lent
        self._heirs: list[Task] = []  # plain containers of an earlier daemon's, whose sandboxes are still to be seen
        self._clock = clock
        self._on_lost = lost
        self._planner = Planner()
        self._facts: HostFacts | None = None
        self._view: ViewParts | None = None
        self._revision = 0
        self._sweep_due = False
        self._sandboxes: dict[TaskID, Sandbox] = {}
        self._wirings: dict[TaskID, asyncio.Task[None]] = {}
        self._parallel = asyncio.Semaphore(PARALLEL_WIRINGS)
        self._managers_spoke = False
        self._trusted = asyncio.Event()  # the view may take away what is in the kernel and not in it
        self._wake = asyncio.Event()
        self._passed = asyncio.Condition()
        self._threads = KernelThreads(THREADS)
        self._namespaces = Namespaces(kernel, self._threads)
        self._connections = Connections(self._threads, lambda: self._facts is not None and self._facts.sockets)
        self._drift = Drift(
            self._namespaces,
            self._threads,
            clock,
            local.repairs,
            host_changed=self._look_again,
            failed=self._wake.set,
            rebuilt=self._cut_off,
        )
        self._firewalls = Firewalls(
            self._bridges,
            lambda bridges: self._threads.run(foreign.let_pass, bridges),
            clock,
            restored=lambda words: local.repairs.note("host", HOST, words),
        )

    @property
    def plans(self) -> dict[str, NamespacePlan]:
        """What the kernel was last made to hold, by namespace; without what failed."""
        return dict(self._namespaces.applied)

    @property
    def failing(self) -> int:
        """Namespaces that are not as they should be."""
        return len(self._namespaces.failures)

    def want(self, view: ViewParts, revision: int, *, sweep: bool = False, remembered: bool = False) -> None:
        """Make the kernel agree with `view`; with `sweep` also remove ours that nobody wants.

        One that is only `remembered` may be older than what the kernel holds: see `TRUST_AFTER`.
        """
        if remembered:
            asyncio.get_running_loop().call_later(TRUST_AFTER, self._trust)
        else:
            self._trusted.set()
        if self._view is None or sweep:
            self._names.inherit(view)
        self._view, self._revision = view, revision
        self._sweep_due |= sweep
        self._wake.set()

    def _trust(self) -> None:
        self._trusted.set()
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled, which leaves the kernel as it is."""
        self._heirs = list(self._local.holders)
        unsubscribe = self._local.on_change(self._wake.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._apply(), name="apply views")
                tasks.create_task(self._names.run(), name="names")
                tasks.create_task(self._drift.run(), name="drift")
                tasks.create_task(self._firewalls.run(), name="other firewalls")
        finally:
            unsubscribe()
            self._threads.close()

    # --- views ------------------------------------------------------------------------------------------------------

    async def _apply(self) -> None:
        delay = RETRY_FIRST
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._view is None:
                continue
            # Together: the view on disk, in whose pass a manager's view comes, is nothing to sweep by
            revision, sweep, self._sweep_due = self._revision, self._sweep_due, False
            adding = not self._trusted.is_set()
            with self.passes.timed():
                pending = await self._pass(self._view, sweep=sweep, adding=adding)
            if not (adding and pending):
                self._names.acknowledge(revision, pending)
            async with self._passed:
                self._passed.notify_all()
            if self._namespaces.failures or pending:
                asyncio.get_running_loop().call_later(delay, self._wake.set)
                delay = min(2 * delay, RETRY_LAST)
            else:
                delay = RETRY_FIRST

    async def _pass(self, view: ViewParts, *, sweep: bool, adding: bool) -> int:
        """Returns how much of the view is not in the kernel. With `sweep`, what is ours and not in it goes; `adding`:
        nothing goes."""
        try:
            facts = self._facts or await self._look()
        except (HivemeshError, OSError) as error:
            self._namespaces.note(HOST, (str(error),))
            self._sweep_due |= sweep
            return 1
        self._tell_of_ipvs(view, facts)
        self._inherit(view, facts)
        plans = self._forwarding(view, facts)
        pending = sum([await self._namespaces.ensure(plan, adding=adding) for plan in plans])
        wired = [s for task, s in self._sandboxes.items() if task not in self._wirings or self._wirings[task].done()]
        for sandbox in wired:
            plan = self._planner.sandbox(sandbox, facts, view.services)
            here = partial(self._sandboxes.__contains__, sandbox.task.id)
            pending += await self._namespaces.ensure(plan, adding=adding, wanted=here)
        if adding and pending:
            return pending  # names and connections follow the kernel
        await self._connections.follow(view, self._sandboxes.values())
        if sweep or self._managers_spoke:
            self._managers_spoke = True
            await self._connections.forget_strangers(view, self._sandboxes.values())
        self._planner.keep(view, self._sandboxes.values())
        self._names.know(names_on(self._local.in_kernel, list(self._local.holders)))
        self._names.follow(view, all_known=sweep)
        wanted = {plan.namespace for plan in plans} | {sandbox_namespace(task) for task in self._sandboxes}
        known = self._namespaces.applied.keys() | self._namespaces.failures.keys()
        for namespace in known - wanted - {HOST}:
            await self._remove(namespace)
        if sweep:
            await self._sweep(wanted, view)
        return pending

    def _forwarding(self, view: ViewParts, facts: HostFacts) -> list[NamespacePlan]:
        """A machine in no swarm is left as it is until somebody wants a network of it."""
        plans = self._planner.forwarding(view, self._in_order(view, facts), facts, self._local.in_kernel)
        untouched = not facts.in_swarm and HOST not in self._namespaces.applied
        return [plan for plan in plans if not (untouched and plan is PLAIN_HOST)]

    def _inherit(self, view: ViewParts, facts: HostFacts) -> None:
        """Sandboxes of plain containers go on as they are, their ports and names too, before the engine has spoken."""
        heirs, self._heirs = self._heirs, []
        for task in heirs:
            try:
                sandbox = self._plain_sandbox(task, view, facts)
            except HivemeshError as error:
                log.warning("the sandbox of container %s is not looked after: %s", task.container, error)
                continue
            if task.id in self._sandboxes or not netns.exists(sandbox_namespace(task.id)):
                continue
            if len(sandbox.networks) + len(sandbox.local) < len(task.attachments):
                continue  # a network of the swarm is still to come with the view
            self._sandboxes[task.id] = sandbox
            self._names.inherit_local(task, sandbox.networks, sandbox.local)

    def _plain_sandbox(self, task: Task, view: ViewParts, facts: HostFacts) -> Sandbox:
        ids = {attachment.network_id for attachment in task.attachments}
        networks = {i: view.networks[i] for i in ids if i in view.networks}
        local = {i: network for i in ids if (network := self._local.known(i)) is not None}
        lease = self._leases.acquire(task.id, facts) if wants_gateway(task, networks.values(), local.values()) else None
        return Sandbox(task=task, networks=networks, lease=lease, local=local)

    def _tell_of_ipvs(self, view: ViewParts, facts: HostFacts) -> None:
        """Once per service that asks in vain."""
        asking: set[ServiceID] = set()
        if facts.lacks_ipvs:
            asking = {item.service for item in view.publishes if item.balance.engine == "ipvs"}
            asking |= {i.service for items in view.services.values() for i in items if i.balance.engine == "ipvs"}
        for service in asking - self._told_of_ipvs:
            log.warning("service %s asks for IPVS: nftables balances it on this node, for %s", service, ipvs.MISSING)
        self._told_of_ipvs = asking

    async def _remove(self, namespace: str, *, unplug: bool = False) -> None:
        self._planner.forget(namespace)
        if not await self._namespaces.remove(namespace, unplug=unplug):
            self._sweep_due = True  # tried again with the back-off of whatever failed

    async def _sweep(self, wanted: set[str], view: ViewParts) -> None:
        """Remove namespaces with our mark that belong to nothing in the view, and what is left of such."""
        for name in await self._namespaces.ours():
            # Looked at anew for each: a sandbox may have been asked for while the others were removed
            if name not in wanted | self._claimed(view):
                log.info("removing the namespace %s, which nobody wants any more", name)
                await self._remove(name, unplug=True)
        self._leases.keep(view.tasks.keys() | self._sandboxes.keys() | self._local.owners)

    def _claimed(self, view: ViewParts) -> set[str]:
        """Namespaces of whoever lives or asked for one, whether its executor has come to it or not."""
        alive = {task for task, item in view.tasks.items() if not item.task.status.state.dead}
        return {sandbox_namespace(task) for task in alive | self._sandboxes.keys() | self._local.owners}

    def _in_order(self, view: ViewParts, facts: HostFacts) -> list[Sandbox]:
        """Where two claim a host port, the task that should run comes last and wins."""
        sandboxes = [*self._sandboxes.values(), *self._unclaimed(view, facts)]
        return sorted(sandboxes, key=lambda s: (s.task.wanted, s.task.created, s.task.id))

    def _unclaimed(self, view: ViewParts, facts: HostFacts) -> Iterator[Sandbox]:
        """Sandboxes with ports on this host that an earlier daemon made, and no executor of ours has asked for yet."""
        for identifier, item in view.tasks.items():
            task, status = item.task, item.task.status
            if identifier in self._sandboxes or identifier not in self._leases or task.attached or status.state.dead:
                continue
            if any(port.publish_mode == "host" for port in task.ports) and netns.exists(sandbox_namespace(identifier)):
                with contextlib.suppress(HivemeshError):  # the executor will say so
                    ports = self._leases.host_ports(identifier, task.ports, self._busy)
                    yield replace(self._plain_sandbox(task, view, facts), ports=ports)

    # --- sandboxes: what executors ask for --------------------------------------------------------------------------

    async def attach(self, task: Task) -> str:
        """The path of the task's namespace, once it is wired. Raises `Unavailable`, and as `LentNetworks.complete`."""
        task = await self._placed(task)
        needed = {attachment.network_id for attachment in task.attachments}
        self._wake.set()  # a network of this node may be just being made
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT), self._passed:
                await self._passed.wait_for(lambda: self._has(needed))
        except TimeoutError:
            here = [network.device for n in needed if (network := self._local.known(n)) is not None]
            why = "; ".join(self._namespaces.failures.get(HOST, ())) if here else ""
            raise Unavailable(
                f"the network {', '.join(here)} of this node cannot be made: {why}"
                if why
                else "node is missing network attachments, ip addresses may be exhausted"
            ) from None
        assert self._view is not None
        assert self._facts is not None
        sandbox = self._plain_sandbox(task, self._view, self._facts)
        ports = self._leases.host_ports(task.id, task.ports, self._busy) if sandbox.lease and not task.attached else ()
        self._sandboxes[task.id] = sandbox = replace(sandbox, ports=ports)
        wiring = asyncio.create_task(self._wire(task.id), name=f"wire {task.id}")
        self._wirings[task.id] = wiring
        try:
            await asyncio.shield(wiring)  # a thread cannot be cancelled: `detach` waits for it
        finally:
            if wiring.done():
                self._wirings.pop(task.id, None)
        await self._names.admit(task, sandbox.networks, sandbox.local)
        if ports or task.local.ports:
            self._wake.set()
        if task.local.ports:  # whoever started the container will ask at once
            for plan in self._forwarding(self._view, self._facts)[:1]:
                await self._namespaces.ensure(plan)
        return netns.path(sandbox_namespace(task.id))

    async def _placed(self, task: Task) -> Task:
        """With its addresses on networks of the swarm that each node makes itself."""
        due = {attachment.network_id for attachment in task.attachments if not attachment.addresses}
        if self._lent is None or not due:
            return task
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT), self._passed:
                await self._passed.wait_for(lambda: self._view is not None and due <= self._view.local.keys())
        except TimeoutError:
            raise Unavailable("node is missing network attachments: no manager has told of them yet") from None
        assert self._view is not None
        return self._lent.complete(task, self._view.local)

    async def detach(self, task: TaskID, *, unplug: bool = False) -> None:
        """Remove the task's sandbox and all it was granted; already gone is fine. `unplug`: at once, though its
        container runs."""
        self._heirs = [heir for heir in self._heirs if heir.id != task]  # else it would come back
        wiring = self._wirings.pop(task, None)
        if wiring is not None:
            await asyncio.gather(wiring, return_exceptions=True)
        sandbox = self._sandboxes.pop(task, None)
        await self._names.dismiss(task)
        await self._remove(sandbox_namespace(task), unplug=unplug)
        self._leases.release(task)
        if sandbox is not None and self._lent is not None and not sandbox.task.attached:
            self._lent.release(task)
        if sandbox is not None:
            if sandbox.lease is not None and (sandbox.ports or sandbox.task.local.ports):
                await self._connections.forget(HOST, udp=(sandbox.lease.v4.ip, sandbox.lease.v6.ip))
            if sandbox.local and sandbox.task.local.ports:
                await self._connections.forget(HOST, udp=[i.ip for a in sandbox.task.attachments for i in a.addresses])
            self._wake.set()

    def files(self, task: Task, hostname: str, into: SandboxFiles | None = None) -> dict[str, str]:
        """The files that stand in the task's container, written anew; `attach` was called."""
        sandbox = self._sandboxes[task.id]
        return self._names.files(task, sandbox.networks, hostname, sandbox.local, into)

    def host_ports(self, task: TaskID) -> tuple[PortConfig, ...]:
        sandbox = self._sandboxes.get(task)
        return sandbox.ports if sandbox else ()

    def ports_in_use(self) -> list[tuple[str, int]]:
        """Protocols and numbers of the ports that services publish here."""
        published = [(item.protocol, item.port) for item in (self._view.publishes if self._view else ())]
        return published + [(p.protocol, p.published_port) for s in self._sandboxes.values() for p in s.ports]

    def _busy(self) -> Collection[tuple[str, int]]:
        """Ports that no task should be given: services', plain containers', and what programs of the host listen on."""
        plain = {(port.protocol, port.port) for task in self._local.holders for port in task.local.ports}
        return plain.union(self.ports_in_use(), listening.doors_of(os.getpid()))

    def _has(self, networks: Iterable[NetworkID]) -> bool:
        if self._view is None or HOST not in self._namespaces.applied:
            return False
        known = self._view.networks
        devices = {link.name for link in self._namespaces.applied[HOST].links}

        def is_there(network: NetworkID) -> bool:
            if (local := self._local.known(network)) is not None:
                return local.device in devices or not (local.is_bridge or local.own_parent)
            return network in known and overlay_namespace(network) in self._namespaces.applied

        return all(is_there(network) for network in networks)

    async def _wire(self, task: TaskID) -> None:
        """Patient for a moment: a bridge it is to be plugged into may just be being repaired."""
        if not self._trusted.is_set() and await self._namespaces.loses(self._plan_of(task)):
            await self._trusted.wait()
        for pause in WIRING_PAUSES:
            async with self._parallel:
                plan = self._plan_of(task)
                while not await self._namespaces.ensure(plan):
                    before, plan = plan, self._plan_of(task)
                    if plan is before:  # else a view came meanwhile, and passed us by
                        return
            await asyncio.sleep(pause)
        raise Unavailable(f"cannot build the sandbox: {'; '.join(self._namespaces.failures.get(plan.namespace, ()))}")

    def _plan_of(self, task: TaskID) -> NamespacePlan:
        assert self._view is not None
        assert self._facts is not None
        return self._planner.sandbox(self._sandboxes[task], self._facts, self._view.services)

    # --- this machine -----------------------------------------------------------------------------------------------

    def _cut_off(self, namespace: str) -> None:
        """It was made anew: the container that was in it has no network any more."""
        for task in self._sandboxes:
            if sandbox_namespace(task) == namespace:
                self._on_lost(task)

    def _bridges(self) -> list[str]:
        """Those on the host that are ours."""
        plan = self._namespaces.applied.get(HOST)
        return [link.name for link in plan.links if isinstance(link, Bridge)] if plan is not None else []

    async def _look(self) -> HostFacts:
        """Raises `Unavailable` or `OSError`."""
        facts = await self._threads.run(gather, self._vtep, self._balancer)
        lack = await self._threads.run(self._hooks.lack) if self._hooks is not None else ""
        if lack and self._facts is None:
            log.info("sockets are not balanced, nftables does it all: %s", lack)
        self._facts = replace(facts, sockets=self._hooks is not None and not lack, counts=self._counts)
        return self._facts

    async def _look_again(self) -> None:
        before = self._facts
        try:
            if before is not None and await self._look() != before:
                log.info("this machine's addresses or links changed")
                self._wake.set()
        except (HivemeshError, OSError) as error:
            log.warning("%s", error)

    # --- for the owner ----------------------------------------------------------------------------------------------

    async def differences(self) -> list[Difference]:
        """What the kernel lacks or has too much, over all namespaces; [] means equal to the plan."""
        view = self._view
        if view is None:
            return []
        try:
            facts = self._facts or await self._look()
        except (HivemeshError, OSError) as error:
            return [Difference(namespace=HOST, text=str(error))]
        plans = self._forwarding(view, facts)
        plans += [self._planner.sandbox(sandbox, facts, view.services) for sandbox in self._sandboxes.values()]
        return await self._namespaces.differences(plans, lambda: self._claimed(view))

    async def dissolve(self) -> None:
        """End the resolver and remove everything of ours from the kernel; `run` has ended.

        But for plain containers on networks of this node: whoever comes next puts right what they are left with, and
        takes over the resolver, so that they go on asking meanwhile.
        """
        if not self._local.owners:
            await self._names.dissolve()
        kept = {sandbox_namespace(task) for task in self._local.owners}
        for name in await asyncio.to_thread(marked):
            if name not in kept:
                await asyncio.to_thread(self._namespaces.kernel.remove, name)
        if not self._local.in_kernel:
            await asyncio.to_thread(self._namespaces.kernel.remove, HOST)
            try:
                await asyncio.to_thread(foreign.let_pass, ())
            except HivemeshError as error:
                log.warning("our rules in tables of others stay: %s", error)
        if self._hooks is not None:
            await asyncio.to_thread(self._hooks.discard)
