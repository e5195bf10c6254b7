"""This node's part in the doctor's rounds: it looks at itself, sends and hears probes, and judges for who asks here."""

import asyncio
import logging
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from hivemesh.agent import join as membership
from hivemesh.agent.identity import Identity
from hivemesh.agent.session import Session
from hivemesh.agent.worker import Worker
from hivemesh.cnm.node import ViewParts
from hivemesh.config import DaemonConfig
from hivemesh.control.manager import Manager
from hivemesh.daemon import looking
from hivemesh.dataplane.plan.names import INGRESS_SANDBOX, overlay_namespace, sandbox_namespace
from hivemesh.doctor import fixes, machine, registry
from hivemesh.kernel.api import HOST, NamespacePlan, Vxlan
from hivemesh.kernel.crossing import Far, Near, Outcome, cross
from hivemesh.kernel.linux import Linux
from hivemesh.model.addr import Address, parse_host_port
from hivemesh.model.cluster import DEFAULT_DATA_PATH_PORT, DEFAULT_LISTEN_PORT
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.network import VXLAN_OVERHEAD
from hivemesh.model.task import TaskState
from hivemesh.pki import MANAGER_NAME, certificates_in, validity
from hivemesh.trace.kernel import look
from hivemesh.trace.way import asked_name
from hivemesh.wire.control import InspectWanted, NetworkItem, ServiceItem
from hivemesh.wire.doctor import (
    Asked,
    Call,
    Diagnosis,
    Finding,
    Heard,
    Inspected,
    Inspection,
    Machine,
    Membership,
    NodeFacts,
    Place,
    Seen,
    Told,
    Unlike,
)

log = logging.getLogger("hivemesh.doctor")

PATIENCE = 8.0
"""Seconds for all nodes; each has four."""
CALL_PATIENCE = 2.0
AGAIN = 0.8
"""Seconds until what looks wrong is looked at again: the agent repairs drift in a fraction of that."""
MOST_SANDBOXES, MOST_NAMES = 4, 6
"""Sandboxes that are asked for names, and names each is asked for."""
Plans = dict[str, NamespacePlan]


class Doctoring:
    """`problem` is what the managers' part of this node says is wrong, `sockets` why sockets are not balanced."""

    def __init__(
        self,
        *,
        name: str,
        config: DaemonConfig,
        linux: Linux,
        session: Callable[[], Session],
        worker: Callable[[], Worker],
        manager: Callable[[], Manager | None],
        problem: Callable[[], str],
        sockets: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        self._name = name
        self._config = config
        self._linux = linux
        self._session = session
        self._worker = worker
        self._manager = manager
        self._problem = problem
        self._sockets = sockets
        self._now = now
        self._answering: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()  # two rounds of probes would fill each other's ears

    @property
    def _identity(self) -> Identity:
        return self._session().identity

    # --- asked here -------------------------------------------------------------------------------------------------

    async def diagnose(self, asked: Asked) -> Diagnosis:
        """Never fails for what is broken: that is found."""
        more: tuple[Finding, ...] = ()
        try:
            inspected = await self._inspected()
        except HivemeshError as error:
            more = (_alone(self._name, str(error)),)
            inspected = await self._only_this()
        own = _own(inspected, self._identity.facts.node_id)
        if own is None:
            own = await self._machine()
        found = registry.diagnose(self._name, own, inspected, more)
        return await treat(found, own) if asked.fix else found

    async def _only_this(self) -> Inspected:
        """This node as a part of the swarm, while nobody can ask the others."""
        facts = self._identity.facts
        place = Place(id=facts.node_id, name=self._name, vtep=facts.vtep)
        return Inspected(nodes=(Seen(place=place, facts=await self.facts(Inspection(nonce="", places=()))),))

    async def _inspected(self) -> Inspected:
        manager = self._manager()
        if manager is not None and manager.inspector is not None and manager.leader == manager.me:
            return await manager.inspector.inspect()
        try:
            async with asyncio.timeout(PATIENCE):
                return await membership.inspect(self._identity)
        except TimeoutError:
            raise Unavailable(f"no manager could ask the nodes in {PATIENCE:g} s") from None

    # --- asked by managers ------------------------------------------------------------------------------------------

    def heed(self, frame: InspectWanted, manager: str) -> None:
        """Answer whoever wants it; `manager` (host:port) told us."""
        if self._one_at_a_time.locked():
            return  # probes of another round are under way: who asks now hears that this node did not say in time
        for earlier in self._answering:  # which nobody waits for any more
            earlier.cancel()
        answering = asyncio.create_task(self._answer(frame, frame.manager or manager), name="inspect")
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def close(self) -> None:
        for answering in self._answering:
            answering.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _answer(self, frame: InspectWanted, manager: str) -> None:
        try:
            facts = await self.facts(frame.inspection)
            await membership.tell_inspected(self._identity, manager, Told(id=frame.id, facts=facts))
        except (HivemeshError, OSError) as error:
            log.info("cannot tell the manager at %s how this node is: %s", manager, error)
        except Exception:
            log.exception("looking at this node failed")

    async def facts(self, inspection: Inspection) -> NodeFacts:
        """Takes about two seconds."""
        async with self._one_at_a_time:
            repaired = sum(self._worker().drift.values())
            places = inspection.places
            crossing, here, own, calls, astray = await asyncio.gather(
                self._cross(inspection), self._machine(), self._membership(), self._calls(places), self._astray(places)
            )
        outcome, deaf = crossing
        return NodeFacts(
            machine=here,
            membership=replace(
                own, bad_checksums=outcome.bad_checksums, repairs=sum(self._worker().drift.values()) - repaired
            ),
            heard=tuple(_heard(places[n].id, outcome, n) for n in sorted(outcome.heard) if n < len(places)),
            refused={places[n].id: why for n, why in outcome.refused.items()},
            astray=astray,
            calls=calls,
            deaf=deaf,
            time=self._now(),
        )

    # --- probes -----------------------------------------------------------------------------------------------------

    async def _cross(self, inspection: Inspection) -> tuple[Outcome, str]:
        """What came, and why we could not listen."""
        if not inspection.places:
            return Outcome(), ""
        me = self._identity.facts.node_id
        number = next((n for n, place in enumerate(inspection.places) if place.id == me), None)
        if number is None:
            return Outcome(), "it is not among the nodes that are ready"
        parts, plans = self._worker().parts, self._worker().plans
        ingress = _ingress(parts)
        own = inspection.places[number].inside
        tunnels = [link.mtu for plan in plans.values() for link in plan.links if isinstance(link, Vxlan)]
        near = Near(
            number=number,
            nonce=bytes.fromhex(inspection.nonce),
            vtep=self._identity.facts.vtep,
            port=ingress.port if ingress is not None else DEFAULT_DATA_PATH_PORT,
            namespace=INGRESS_SANDBOX if INGRESS_SANDBOX in plans and own is not None else "",
            inside=own if INGRESS_SANDBOX in plans else None,
            needs=max(tunnels, default=0) + _overhead(self._identity.facts.vtep),
            carries=_carries(ingress, plans),
        )
        others = [
            Far(number=n, vtep=place.vtep, inside=place.inside)
            for n, place in enumerate(inspection.places)
            if n != number
        ]
        try:
            return await asyncio.to_thread(cross, near, others), ""
        except OSError as error:
            return Outcome(), error.strerror or str(error)

    async def _astray(self, places: tuple[Place, ...]) -> dict[str, Unlike]:
        own = self._identity.facts.vtep
        return await asyncio.to_thread(lambda: looking.astray(self._linux.door(HOST), places, own))

    async def _calls(self, places: tuple[Place, ...]) -> tuple[Call, ...]:
        managers = [place.manager for place in places if place.manager] or self._identity.facts.managers
        return tuple(await asyncio.gather(*(self._call(manager) for manager in managers)))

    async def _call(self, manager: str) -> Call:
        """TCP and TLS, with both certificates."""
        host, port = parse_host_port(manager, DEFAULT_LISTEN_PORT, "manager address")
        try:
            async with asyncio.timeout(CALL_PATIENCE):
                _, writer = await asyncio.open_connection(
                    host, port, ssl=self._identity.client_context(), server_hostname=MANAGER_NAME
                )
            writer.close()
        except (OSError, HivemeshError, TimeoutError) as error:
            return Call(manager=manager, error=membership.reason_of(error))
        return Call(manager=manager)

    # --- this node --------------------------------------------------------------------------------------------------

    async def _machine(self) -> Machine:
        return await asyncio.to_thread(
            machine.gather,
            self._name,
            data_dir=self._config.data_dir,
            member=True,
            engine=self._config.engine,
            balancer=self._config.balancer,
            sockets=self._sockets(),
        )

    async def _membership(self) -> Membership:
        identity, worker, session = self._identity, self._worker(), self._session()
        (drift, healed), names, silent, strangers = await asyncio.gather(
            self._drift(worker),
            self._names(worker),
            asyncio.to_thread(looking.silent, worker.plans, worker.parts, self._now()),
            asyncio.to_thread(looking.foreign_rules, worker.plans),
        )
        parts = worker.parts
        networks = parts.networks.values() if parts is not None else ()
        tunnels = [link.mtu for plan in worker.plans.values() for link in plan.links if isinstance(link, Vxlan)]
        return Membership(
            role=identity.facts.role,
            certificate=identity.validity(),
            root=min(validity(root)[1] for root in certificates_in(identity.ca)),
            session=session.error,
            drift=drift,
            healed=healed,
            names=names,
            silent=silent,
            strangers=strangers,
            store=self._problem(),
            subnets={n.name: tuple(subnet.prefix for subnet in n.subnets) for n in networks},
            underlay=identity.facts.vtep,
            needs=max(tunnels, default=0) + _overhead(identity.facts.vtep) if tunnels else 0,
        )

    async def _drift(self, worker: Worker) -> tuple[tuple[Unlike, ...], tuple[Unlike, ...]]:
        """What differs from the plan twice, and what did only once though no plan changed meanwhile."""
        plans = worker.plans
        first = await worker.equal_to_plan()
        if not first:
            return (), ()
        means = await asyncio.to_thread(looking.unlike, self._linux, plans, first)
        await asyncio.sleep(AGAIN)
        second = set(await worker.equal_to_plan())
        stays = tuple(unlike for difference, unlike in means.items() if difference in second)
        healed = tuple(unlike for difference, unlike in means.items() if difference not in second)
        return stays, healed if worker.plans == plans else ()

    async def _names(self, worker: Worker) -> tuple[str, ...]:
        """Names that are answered wrongly twice: between two looks a task may have come or gone."""
        if await asyncio.to_thread(_wrong_names, self._linux, worker.plans, worker.parts):
            await asyncio.sleep(AGAIN / 2)  # a resolver that does not answer took a second already
            return tuple(await asyncio.to_thread(_wrong_names, self._linux, worker.plans, worker.parts))
        return ()


async def alone(name: str, config: DaemonConfig, asked: Asked) -> Diagnosis:
    """Of a machine in no swarm."""
    own = await asyncio.to_thread(
        machine.gather, name, data_dir=config.data_dir, engine=config.engine, balancer=config.balancer
    )
    found = registry.diagnose(name, own)
    return await treat(found, own) if asked.fix else found


async def treat(found: Diagnosis, own: Machine) -> Diagnosis:
    """What is safe is put right on this machine. What was wrong stays in the findings: what was done stands beside."""
    mine = [finding for finding in found.findings if own.name in finding.where.split(", ")]
    done = await asyncio.to_thread(fixes.apply, own, mine)
    return replace(found, fixed=tuple(done))


def _wrong_names(linux: Linux, plans: Plans, parts: ViewParts | None) -> list[str]:
    """Asks the sandboxes of some tasks for the services on their networks. Blocks."""
    found: list[str] = []
    for namespace, service in _questions(plans, parts):
        addresses = service.vips or tuple(address for backend in service.backends for address in backend.addresses)
        step = asked_name(namespace, service.name, frozenset(addresses))
        for seen in look(linux, plans, step):
            if not seen.right:
                found.append(f"{service.name} in sandbox {namespace}: {seen.text}")
                if "does not answer" in seen.text:
                    return found  # each further question would wait as long
    return found


def _questions(plans: Plans, parts: ViewParts | None) -> Iterator[tuple[str, ServiceItem]]:
    asked = 0
    for task, item in parts.tasks.items() if parts is not None else ():
        namespace = sandbox_namespace(task)
        services = [s for a in item.task.attachments for s in (parts.services.get(a.network_id, ()) if parts else ())]
        runs = item.task.status.state == TaskState.RUNNING and item.task.desired == TaskState.RUNNING
        if namespace in plans and services and runs:  # before, its sandbox may not be let in yet
            asked += 1
            if asked > MOST_SANDBOXES:
                return
            yield from ((namespace, s) for s in services[:MOST_NAMES] if s.vips or s.backends)


def _ingress(parts: ViewParts | None) -> NetworkItem | None:
    return next((n for n in parts.networks.values() if n.ingress), None) if parts is not None else None


def _carries(ingress: NetworkItem | None, plans: Plans) -> int:
    """Bytes of the largest packet on the ingress network."""
    plan = plans.get(overlay_namespace(ingress.id)) if ingress is not None else None
    return next((link.mtu for link in plan.links if isinstance(link, Vxlan)), 0) if plan is not None else 0


def _overhead(vtep: Address) -> int:
    return VXLAN_OVERHEAD if vtep.version == 4 else VXLAN_OVERHEAD + 20


def _heard(node: NodeID, outcome: Outcome, number: int) -> Heard:
    ears = outcome.heard[number]
    return Heard(
        node=node,
        underlay=tuple(sorted(ears.small)),
        largest=max(ears.sizes, default=0),
        overlay=tuple(sorted(ears.overlay)),
        bare=tuple(sorted(ears.bare)),
        full=tuple(sorted(ears.full)),
    )


def _own(inspected: Inspected, me: NodeID) -> Machine | None:
    facts = (seen.facts for seen in inspected.nodes if seen.place.id == me)
    return next((found.machine for found in facts if found is not None), None)


def _alone(name: str, why: str) -> Finding:
    return Finding(
        check="session",
        severity="error",
        where=name,
        what=f"the other nodes cannot be looked at: {why}",
        why="managers pass the questions on; without one only this machine is seen",
        remedy="see that a manager runs, and that its port 2377/tcp is reached from here",
        proof="docker node ls, on a manager",
    )
