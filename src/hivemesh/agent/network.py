"""The network of this node: namespaces as the view wants them, kept so whoever touches them.

Two ways lead to the kernel. A new view is applied in one pass, host first, then overlays, then `ingress_sbox`: what
changed since the last pass and nothing else, so that a new backend is there within milliseconds. The sandbox of a task
is wired when its executor asks for it. Neither waits for a container engine. Names follow the kernel (`names.py`).

What somebody else changes is found by netlink's events, or by a timer where there are none (settings under /proc/sys,
looked at every second): that is drift. It is repaired, counted in `drift`, logged, and told with what it was.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar

from hivemesh.agent.departures import Departures
from hivemesh.agent.facts import gather
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.firewalls import Firewalls
from hivemesh.agent.leases import Leases
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.names import NodeNames
from hivemesh.agent.repairs import told
from hivemesh.clock import Clock
from hivemesh.cnm.local import names_on
from hivemesh.cnm.node import Planner, Sandbox, ViewParts, wants_gateway
from hivemesh.dataplane.apply import Outcome
from hivemesh.dataplane.balancer.engines import BASE, Engine
from hivemesh.dataplane.plan.bridge import PLAIN_HOST
from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.names import overlay_namespace, sandbox_namespace
from hivemesh.dataplane.suspicion import SYSCTL
from hivemesh.kernel import conntrack, foreign, ipvs, listening, netns, sockdiag, sysctl
from hivemesh.kernel.api import HOST, Bridge, NamespacePlan
from hivemesh.kernel.monitor import Beliefs, Monitor
from hivemesh.kernel.sockethooks import SocketHooks
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.ids import NetworkID, ServiceID, TaskID
from hivemesh.model.service import PortConfig
from hivemesh.model.task import Task

log = logging.getLogger("hivemesh.network")

MARK = "hivemesh/"
CHECK_PERIOD = 60.0
"""Seconds between looks at everything."""
SETTINGS_PERIOD = 1.0
"""Seconds between looks at the settings of all namespaces: other programs of the host like to set those back
(`sysctl --system`), and the whole mesh depends on them. A look reads some 15 files per namespace, in 0.3 ms."""
SETTINGS_SHARE = 0.05
"""The part of one processor that these looks may take: beyond 150 sandboxes they come less often."""
SETTLE = 0.02
"""Seconds between an event and the look it causes: whoever changes one thing often changes more."""
RETRY_FIRST, RETRY_LAST = 0.2, 30.0
"""Seconds until what failed is tried again, doubled each time."""
ATTACH_TIMEOUT = 30.0
"""Seconds a task waits for its networks to come with the view (Docker's number)."""
WIRING_PAUSES = (0.05, 0.2, 0.5, 1.0, 0.0)
"""Seconds after each attempt to wire a sandbox that failed."""
PARALLEL_WIRINGS = 2
"""Sandboxes at a time; a pass for a new view slips in between."""
REPAIRS = 3
THREADS = PARALLEL_WIRINGS + 2
"""One for views, one for drift. Netlink's calls block, for less than a millisecond each."""

SETTINGS = frozenset({SYSCTL})

P = ParamSpec("P")
R = TypeVar("R")


class Kernel(Beliefs, Protocol):
    """`dataplane.apply.Applier`."""

    def ensure(self, plan: NamespacePlan) -> Outcome: ...
    def remove(self, namespace: str) -> None: ...
    def differences(self, plan: NamespacePlan) -> list[str]: ...
    def forget(self, namespace: str, kinds: frozenset[str] = ...) -> None: ...
    def affected(self, namespace: str) -> tuple[str, ...]: ...


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
        leases: Leases,
        clock: Clock,
        lost: Callable[[TaskID], None],
        local: LocalNetworks,
    ) -> None:
        """Without `vtep` the node is in no swarm: `local` is all there is. Without `hooks` no sockets are balanced; if
        given, `kernel` uses the same."""
        self.drift: Counter[str] = local.repairs.counts
        self._kernel = kernel
        self._names = names
        self._vtep = vtep
        self._balancer = balancer
        self._hooks = hooks
        self._told_of_ipvs: set[ServiceID] = set()
        self._leases = leases
        self._local = local
        self._heirs: list[
            Task
        ] = []  # plain containers that an earlier daemon left, whose sandboxes are still to be seen
        self._clock = clock
        self._on_lost = lost
        self._planner = Planner()
        self._monitor = Monitor(kernel)
        self._facts: HostFacts | None = None
        self._view: ViewParts | None = None
        self._revision = 0
        self._sweep_due = False
        self._sandboxes: dict[TaskID, Sandbox] = {}
        self._wirings: dict[TaskID, asyncio.Task[None]] = {}
        self._parallel = asyncio.Semaphore(PARALLEL_WIRINGS)
        self._applied: dict[str, NamespacePlan] = {}
        self._failures: dict[str, tuple[str, ...]] = {}
        self._departures = Departures()
        self._managers_spoke = False
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wake = asyncio.Event()
        self._passed = asyncio.Condition()
        self._touched: set[str] = set()
        self._touch = asyncio.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kernel")
        self._firewalls = Firewalls(
            self._bridges,
            lambda bridges: self._in_thread(foreign.let_pass, bridges),
            clock,
            restored=lambda words: local.repairs.note("host", HOST, words),
        )

    @property
    def plans(self) -> dict[str, NamespacePlan]:
        """What the kernel was last made to hold, by namespace; without what failed."""
        return dict(self._applied)

    def want(self, view: ViewParts, revision: int, *, sweep: bool = False) -> None:
        """Make the kernel agree with `view`; with `sweep` also remove ours that nobody wants."""
        if self._view is None or sweep:
            self._names.inherit(view)
        self._view, self._revision = view, revision
        self._sweep_due |= sweep
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled, which leaves the kernel as it is."""
        self._heirs = list(self._local.holders)
        unsubscribe = self._local.on_change(self._wake.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._apply(), name="apply views")
                tasks.create_task(self._names.run(), name="names")
                tasks.create_task(self._listen(), name="kernel events")
                tasks.create_task(self._check_touched(), name="drift")
                tasks.create_task(self._check_regularly(), name="slow look")
                tasks.create_task(self._check_settings(), name="settings")
                tasks.create_task(self._firewalls.run(), name="other firewalls")
        finally:
            unsubscribe()
            # Threads cannot be cancelled: what they have begun ends before anybody else touches the kernel
            self._threads.shutdown(cancel_futures=True)

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
            pending = await self._pass(self._view, sweep=sweep)
            self._names.acknowledge(revision, pending)
            async with self._passed:
                self._passed.notify_all()
            if self._failures or pending:
                asyncio.get_running_loop().call_later(delay, self._wake.set)
                delay = min(2 * delay, RETRY_LAST)
            else:
                delay = RETRY_FIRST

    async def _pass(self, view: ViewParts, *, sweep: bool) -> int:
        """Returns how much of the view is not in the kernel. With `sweep`, what is ours and not in it goes."""
        try:
            facts = self._facts or await self._look()
        except (HivemeshError, OSError) as error:
            self._note(HOST, (str(error),))
            self._sweep_due |= sweep
            return 1
        self._tell_of_ipvs(view, facts)
        self._inherit(view, facts)
        plans = self._forwarding(view, facts)
        pending = sum([await self._ensure(plan) for plan in plans])
        wired = [s for task, s in self._sandboxes.items() if task not in self._wirings or self._wirings[task].done()]
        for sandbox in wired:
            pending += await self._ensure(self._planner.sandbox(sandbox, facts, view.services))
        await self._forget_connections(view)
        if sweep or self._managers_spoke:
            self._managers_spoke = True
            await self._forget_strangers(view)
        self._planner.keep(view, self._sandboxes.values())
        self._names.know(names_on(self._local.in_kernel, list(self._local.holders)))
        self._names.follow(view, all_known=sweep)
        wanted = {plan.namespace for plan in plans} | {sandbox_namespace(task) for task in self._sandboxes}
        for namespace in self._applied.keys() - wanted:
            await self._remove(namespace)
        if sweep:
            await self._sweep(wanted, view)
        return pending

    def _forwarding(self, view: ViewParts, facts: HostFacts) -> list[NamespacePlan]:
        """A machine in no swarm is left as it is until somebody wants a network of it."""
        plans = self._planner.forwarding(view, self._in_order(), facts, self._local.in_kernel)
        untouched = not facts.in_swarm and HOST not in self._applied
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
        lease = self._leases.acquire(task.id, facts) if wants_gateway(task, networks.values()) else None
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

    async def _ensure(self, plan: NamespacePlan) -> int:
        """The number of failures; those of an unchanged plan are tried again."""
        name = plan.namespace
        if self._applied.get(name) is plan:
            return 0
        async with self._locks[name]:
            try:
                outcome = await self._in_thread(self._kernel.ensure, plan)
                failed = outcome.failed
            except (HivemeshError, OSError) as error:
                failed = (str(error),)
            self._note(name, failed)
            if failed:
                self._applied.pop(name, None)
            else:
                self._applied[name] = plan
            with contextlib.suppress(FileNotFoundError):
                self._monitor.add(name)
        return len(failed)

    def _note(self, namespace: str, failed: tuple[str, ...]) -> None:
        """Remember what failed, and log it once."""
        if failed and self._failures.get(namespace) != failed:
            log.warning("%s is not as it should be: %s", namespace or "the host", "; ".join(failed))
        if failed:
            self._failures[namespace] = failed
        else:
            self._failures.pop(namespace, None)

    async def _remove(self, namespace: str) -> None:
        async with self._locks[namespace]:
            self._monitor.remove(namespace)
            self._planner.forget(namespace)
            self._applied.pop(namespace, None)
            self._failures.pop(namespace, None)
            try:
                await self._in_thread(self._kernel.remove, namespace)
            except (HivemeshError, OSError) as error:
                self._note(namespace, (str(error),))
                self._sweep_due = True  # tried again with the back-off of whatever failed
        self._locks.pop(namespace, None)

    async def _forget_connections(self, view: ViewParts) -> None:
        """Nobody goes on talking to a backend that left: after the rules say so, for the next packet asks them."""
        for departed in self._departures.since_last(view, self._sandboxes.values()):
            await self._forget(departed.namespace, udp=departed.udp, every=departed.every)

    async def _forget_strangers(self, view: ViewParts) -> None:
        """Of what an earlier daemon left: whoever departed since then."""
        for left in self._departures.strangers(view, self._sandboxes.values()):
            try:
                count = await self._in_thread(
                    conntrack.forget_strangers, left.namespace, left.within, known=left.known, backends=left.backends
                )
            except FileNotFoundError:  # the namespace is gone again
                continue
            except OSError as error:
                log.warning("cannot forget connections of %s to whoever left before: %s", left.namespace, error)
                continue
            if count:
                log.info("%s: forgot %d connections to tasks that left before we looked", left.namespace, count)
            await self._end_connections(sockdiag.end_strangers, left.namespace, left.within, known=left.known)

    async def _forget(self, namespace: str, *, udp: Collection[Address], every: Collection[Address] = ()) -> None:
        try:
            await self._in_thread(conntrack.forget, namespace, udp=udp, every=every)
            await self._in_thread(ipvs.forget, namespace, every)
        except FileNotFoundError:  # the namespace is gone
            return
        except OSError as error:
            log.warning("cannot forget connections of %s to backends that left: %s", namespace or "the host", error)
        if every and namespace != HOST:
            await self._end_connections(sockdiag.end, namespace, every)

    async def _end_connections(self, how: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> None:
        """Of sockets that were led to a backend: there is nothing to forget, but nobody would answer them."""
        if self._facts is None or not self._facts.sockets:
            return
        try:
            await self._in_thread(how, *args, **kwargs)
        except FileNotFoundError:  # the namespace
            pass
        except OSError as error:
            log.warning("cannot end connections to backends that left: %s", error)

    async def _sweep(self, wanted: set[str], view: ViewParts) -> None:
        """Remove namespaces with our mark that belong to nothing in the view."""
        alive = {sandbox_namespace(task) for task, item in view.tasks.items() if not item.task.status.state.dead}
        alive |= {sandbox_namespace(task) for task in self._local.owners}
        for name in await self._in_thread(self._ours):
            # Looked at anew for each: a sandbox may have been asked for while the others were removed
            asked = {sandbox_namespace(task) for task in self._sandboxes}
            if name not in wanted | alive | asked:
                log.info("removing the namespace %s, which nobody wants any more", name)
                await self._remove(name)
        self._leases.keep(view.tasks.keys() | self._sandboxes.keys() | self._local.owners)

    def _ours(self) -> list[str]:
        found = []
        for name in netns.names():
            with contextlib.suppress(OSError):
                if netns.mark_of(name).startswith(MARK):
                    found.append(name)
        return found

    def _in_order(self) -> list[Sandbox]:
        """Where two claim a host port, the task that should run comes last and wins."""
        return sorted(self._sandboxes.values(), key=lambda s: (s.task.wanted, s.task.created, s.task.id))

    # --- sandboxes: what executors ask for --------------------------------------------------------------------------

    async def attach(self, task: Task) -> str:
        """The path of the task's namespace, once it is wired. Raises `Unavailable`."""
        needed = {attachment.network_id for attachment in task.attachments}
        self._wake.set()  # a network of this node may be just being made
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT), self._passed:
                await self._passed.wait_for(lambda: self._has(needed))
        except TimeoutError:
            here = [network.device for n in needed if (network := self._local.known(n)) is not None]
            why = "; ".join(self._failures.get(HOST, ())) if here else ""
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
                await self._ensure(plan)
        return netns.path(sandbox_namespace(task.id))

    async def detach(self, task: TaskID) -> None:
        """Remove the task's sandbox and all it was granted; already gone is fine."""
        wiring = self._wirings.pop(task, None)
        if wiring is not None:
            await asyncio.gather(wiring, return_exceptions=True)
        sandbox = self._sandboxes.pop(task, None)
        await self._names.dismiss(task)
        await self._remove(sandbox_namespace(task))
        self._leases.release(task)
        if sandbox is not None:
            if sandbox.lease is not None and (sandbox.ports or sandbox.task.local.ports):
                await self._forget(HOST, udp=(sandbox.lease.v4.ip, sandbox.lease.v6.ip))
            if sandbox.local and sandbox.task.local.ports:
                await self._forget(HOST, udp=[i.ip for a in sandbox.task.attachments for i in a.addresses])
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
        if self._view is None or HOST not in self._applied:
            return False
        known = self._view.networks
        devices = {link.name for link in self._applied[HOST].links}

        def is_there(network: NetworkID) -> bool:
            if (local := self._local.known(network)) is not None:
                return local.device in devices or not (local.is_bridge or local.own_parent)
            return network in known and overlay_namespace(network) in self._applied

        return all(is_there(network) for network in networks)

    async def _wire(self, task: TaskID) -> None:
        """Patient for a moment: a bridge it is to be plugged into may just be being repaired."""
        for pause in WIRING_PAUSES:
            async with self._parallel:
                plan = self._plan_of(task)
                while not await self._ensure(plan):
                    before, plan = plan, self._plan_of(task)
                    if plan is before:  # else a view came meanwhile, and passed us by
                        return
            await asyncio.sleep(pause)
        raise Unavailable(f"cannot build the sandbox: {'; '.join(self._failures.get(plan.namespace, ()))}")

    def _plan_of(self, task: TaskID) -> NamespacePlan:
        assert self._view is not None
        assert self._facts is not None
        return self._planner.sandbox(self._sandboxes[task], self._facts, self._view.services)

    # --- drift ------------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for namespace in self._monitor:
            self._touched.add(namespace)
            self._touch.set()

    async def _check_touched(self) -> None:
        while True:
            await self._touch.wait()
            await asyncio.sleep(SETTLE)
            self._touch.clear()
            touched, self._touched = self._touched, set()
            if HOST in touched:
                await self._look_again()
            for namespace in sorted(touched):
                await self._check(namespace)

    async def _check_regularly(self) -> None:
        while True:
            await self._clock.sleep(CHECK_PERIOD)
            await self._look_again()
            for namespace in list(self._applied):
                self._kernel.forget(namespace)
                await self._check(namespace)

    async def _check_settings(self) -> None:
        spent = 0.0
        while True:
            await self._clock.sleep(max(SETTINGS_PERIOD, spent / SETTINGS_SHARE))
            wanted = {name: plan.sysctls for name, plan in self._applied.items()}
            changed, spent = await self._in_thread(sysctl.changed, wanted)
            for namespace in changed:
                self._kernel.forget(namespace, SETTINGS)
                self._touched.add(namespace)
                self._touch.set()

    async def _check(self, namespace: str) -> None:
        """Look again at what is doubted, and put right what is not as we left it."""
        async with self._locks[namespace]:
            plan = self._applied.get(namespace)
            if plan is None:
                return
            words, created, failed = await self._repair(plan)
            if words:
                self._local.repairs.note(plan.mark.split("/")[1] if namespace else "host", namespace, words)
                log.warning("drift in %s, repaired: %s", namespace or "the host", told(words, len(words)))
            self._note(namespace, failed)
            if failed:
                self._applied.pop(namespace, None)
                self._wake.set()
        if created:
            self._rebuilt(namespace)

    async def _repair(self, plan: NamespacePlan) -> tuple[list[str], bool, tuple[str, ...]]:
        """What was repaired in words, whether the namespace had to be made, and what failed.

        Removing one thing, the kernel silently removes others that hung on it: after a repair, all is looked at again.
        """
        words: list[str] = []
        created = False
        for _ in range(REPAIRS):
            try:
                outcome = await self._in_thread(self._kernel.ensure, plan)
            except (HivemeshError, OSError) as error:
                return words, created, (str(error),)
            created |= outcome.created
            words += outcome.repaired or (("the namespace was removed",) if outcome.created else ())
            if not outcome.repaired and not outcome.created:
                break
            self._kernel.forget(plan.namespace)
        return words, created, outcome.failed

    def _rebuilt(self, namespace: str) -> None:
        """A whole namespace had been removed: its neighbours' links went with it, and the task in it is cut off."""
        self._monitor.remove(namespace)
        with contextlib.suppress(FileNotFoundError):  # gone again
            self._monitor.add(namespace)
        for task in self._sandboxes:
            if sandbox_namespace(task) == namespace:
                self._on_lost(task)
        self._touched |= set(self._kernel.affected(namespace)) - {namespace}
        self._touch.set()

    def _bridges(self) -> list[str]:
        """Those on the host that are ours."""
        plan = self._applied.get(HOST)
        return [link.name for link in plan.links if isinstance(link, Bridge)] if plan is not None else []

    async def _look(self) -> HostFacts:
        """Raises `Unavailable` or `OSError`."""
        facts = await self._in_thread(gather, self._vtep, self._balancer)
        lack = await self._in_thread(self._hooks.lack) if self._hooks is not None else ""
        if lack and self._facts is None:
            log.info("sockets are not balanced, nftables does it all: %s", lack)
        self._facts = replace(facts, sockets=self._hooks is not None and not lack)
        return self._facts

    async def _look_again(self) -> None:
        before = self._facts
        try:
            if before is not None and await self._look() != before:
                log.info("this machine's addresses or links changed")
                self._wake.set()
        except (HivemeshError, OSError) as error:
            log.warning("%s", error)

    async def _in_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    # --- for the owner ----------------------------------------------------------------------------------------------

    async def differences(self) -> list[str]:
        """What the kernel lacks or has too much, over all namespaces; [] means equal to the plan."""
        if self._view is None:
            return []
        try:
            facts = self._facts or await self._look()
        except (HivemeshError, OSError) as error:
            return [f"host: {error}"]
        plans = self._forwarding(self._view, facts)
        plans += [self._planner.sandbox(sandbox, facts, self._view.services) for sandbox in self._sandboxes.values()]
        found = []
        for plan in plans:
            async with self._locks[plan.namespace]:
                try:
                    lines = await self._in_thread(self._kernel.differences, plan)
                except (HivemeshError, OSError) as error:
                    lines = [str(error)]
            found += lines
        wanted = {plan.namespace for plan in plans}
        extra = [name for name in await self._in_thread(self._ours) if name not in wanted]
        return found + [f"{name}: nobody wants this namespace" for name in extra]

    async def dissolve(self) -> None:
        """End the resolver and remove everything of ours from the kernel; `run` has ended.

        But for plain containers on networks of this node: whoever comes next puts right what they are left with.
        """
        await self._names.dissolve()
        kept = {sandbox_namespace(task) for task in self._local.owners}
        for name in await asyncio.to_thread(self._ours):
            if name not in kept:
                await asyncio.to_thread(self._kernel.remove, name)
        if not self._local.in_kernel:
            await asyncio.to_thread(self._kernel.remove, HOST)
            try:
                await asyncio.to_thread(foreign.let_pass, ())
            except HivemeshError as error:
                log.warning("our rules in tables of others stay: %s", error)
        if self._hooks is not None:
            await asyncio.to_thread(self._hooks.discard)
