"""The doctor's rounds: all nodes are asked at the same time to look at themselves and to send probes to each other."""

import asyncio
import secrets

from hivemesh.clock import Clock
from hivemesh.control import ports
from hivemesh.control.errands import Errands
from hivemesh.control.logs import Tell
from hivemesh.model.addr import Address
from hivemesh.model.errors import HivemeshError, Unavailable
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.store.tables import Tables
from hivemesh.wire.control import InspectWanted
from hivemesh.wire.doctor import Inspected, Inspection, NodeFacts, Place, Seen, StoreFacts

PATIENCE = 4.2
"""Seconds a node has: its probes take two, and a whole diagnosis should not take five."""
STORE_PATIENCE = 3.0
_SETTINGS = "cluster/"
"""One small object that is always there."""


class Inspector:
    """One inspection at a time: two would hear each other's load, and whoever asks meanwhile gets the same answer."""

    def __init__(self, tables: Tables, tell: Tell, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock
        self._errands = Errands[tuple[NodeFacts, float]](tell, PATIENCE)
        self._running: asyncio.Task[Inspected] | None = None

    async def inspect(self) -> Inspected:
        """All nodes and the store. Never fails for what is broken: that is in the answer."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._inspect(), name="inspection")
        return await asyncio.shield(self._running)

    def answered(self, identifier: str, node: NodeID, facts: NodeFacts) -> None:
        """What a node found. Raises `Forbidden` when it was not asked, or too late."""
        self._errands.answered(identifier, node, (facts, facts.time - self._clock.now()))

    async def _inspect(self) -> Inspected:
        view = self._tables.view
        ingress = ports.ingress(view)
        places: dict[NodeID, Place] = {}
        nodes = sorted(view.all(Node), key=lambda node: (node.description.hostname, node.id))
        for node in nodes:
            if node.vtep is not None:
                places[node.id] = Place(
                    id=node.id,
                    name=node.description.hostname or node.id,
                    vtep=node.vtep,
                    inside=_inside(node, ingress.id if ingress is not None else ""),
                    manager=node.manager_addr,
                )
        nonce = secrets.token_hex(8)
        present = tuple(places[n.id] for n in nodes if n.id in places and n.state == "ready")
        inspection = Inspection(nonce=nonce, places=present)
        looked = (self._look(node, places[node.id], inspection) for node in nodes if node.id in places)
        store, seen = await asyncio.gather(self._store(), asyncio.gather(*looked))
        return Inspected(nodes=tuple(seen), store=store)

    async def _look(self, node: Node, place: Place, inspection: Inspection) -> Seen:
        try:
            if node.state != "ready":
                raise Unavailable(f"it is {node.state}{': ' if node.message else ''}{node.message}")
            facts, skew = await self._errands.ask(
                node, lambda identifier: InspectWanted(id=identifier, inspection=inspection)
            )
        except HivemeshError as error:
            return Seen(place=place, unseen=str(error))
        return Seen(place=place, facts=facts, skew=skew)

    async def _store(self) -> StoreFacts:
        loop = asyncio.get_running_loop()
        managers = [node for node in self._tables.view.all(Node) if node.acting_role == "manager"]
        states: dict[str, str] = {node.description.hostname or node.id: node.state for node in managers}
        begun, error = loop.time(), ""
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                await self._tables.store.snapshot(_SETTINGS)
        except TimeoutError:
            error = f"no answer in {STORE_PATIENCE:g} s"
        except HivemeshError as failure:
            error = str(failure)
        return StoreFacts(seconds=loop.time() - begun, error=error, managers=states)


def _inside(node: Node, ingress: str) -> Address | None:
    """Its own address on the ingress network; IPv4 goes first."""
    own = next((own for own in node.attachments if own.network_id == ingress), None)
    addresses = sorted((a.ip for a in own.addresses), key=lambda a: a.version) if own is not None else []
    return addresses[0] if addresses else None
