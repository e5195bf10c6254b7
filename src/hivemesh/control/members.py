"""The members of the store's cluster follow the nodes with the manager role; the leader sees to it.

    joined as manager ── learner ── caught up: full member ── demoted, left or removed: no member

A manager that is added only listens at first, so that an address where nobody starts costs no majority. One that goes
stops being a manager in the nodes' eyes (`Node.manager_addr`) only when the others can do without it. A leader never
removes its own member, with which its store would end: demoted, it stops leading, and the next one removes it.
"""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from hivemesh.model.addr import host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Conflict, HivemeshError
from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node
from hivemesh.store.etcdapi import EtcdClient, Member
from hivemesh.store.tables import Tables, Transaction

log = logging.getLogger("hivemesh.managers")

PEER_OFFSET = 10_000
"""From a manager's cluster port to the one its etcd has for its peers: 12377."""
PERIOD, LEARNER_PERIOD = 1.0, 0.2
"""Seconds between looks at the members, and while one is catching up."""
START_TIMEOUT = 30.0
"""Seconds after which a member that was added and never started makes room for another one."""
ADMIT_TIMEOUT = 10.0
"""Seconds to wait for another member to catch up before the next one is added."""


def peer_url(manager_addr: str) -> str:
    """Where the etcd of the manager with that cluster port (host:port) is reached by its peers."""
    host, port = parse_host_port(manager_addr, DEFAULT_LISTEN_PORT, "manager address")
    return f"https://{host_port(host, port + PEER_OFFSET if port + PEER_OFFSET < 2**16 else port - PEER_OFFSET)}"


def act_at(tables_change: Transaction, node: NodeID, addr: str, now: float) -> None:
    """From now on the node counts as a manager, at `addr`."""
    known = tables_change.get(Node, node)
    if known is not None and known.manager_addr != addr:
        tables_change.put(msgspec.structs.replace(known, manager_addr=addr, updated=now))


class Members:
    """`client` is None when the store is not ours to run: then there is nobody to add and remove.

    A member's name is its node's id; `me` is this node's.
    """

    def __init__(self, tables: Tables, client: EtcdClient | None, me: NodeID) -> None:
        self._tables = tables
        self._me = me
        self._client = client
        self._unstarted: dict[int, float] = {}  # member id to when it was first seen so

    async def admit(self, node: NodeID, addr: str) -> dict[str, str]:
        """Make room for a manager that begins, with nothing; the members by name, itself included.

        Raises `Conflict` when another one has to catch up first, or `Unavailable`.
        """
        if self._client is None:
            return {}
        peer = peer_url(addr)
        members: Sequence[Member] = await self._client.members()
        for member in members:
            if peer in member.peers and member.name:  # it was one before, and lost what it knew
                await self._client.remove(member.ID)
                members = await self._client.members()
        if not any(peer in member.peers for member in members):
            members = await self._add(peer)
        return {member.name or node: member.peers[0] for member in members if member.peers}

    async def _add(self, peer: str) -> Sequence[Member]:
        assert self._client is not None
        loop = asyncio.get_running_loop()
        until = loop.time() + ADMIT_TIMEOUT
        while True:
            try:
                return await self._client.add_learner(peer)
            except Conflict:
                if loop.time() > until:
                    raise
            await asyncio.sleep(LEARNER_PERIOD)

    async def run(self) -> None:
        """Keep the members as the nodes are, while this manager leads."""
        said = ""
        while True:
            busy = False
            try:
                busy = await self._reconcile()
                said = ""
            except HivemeshError as error:
                if str(error) != said:
                    log.warning("the store's members are not as they should be: %s; trying again", error)
                said = str(error)
            try:
                async with asyncio.timeout(LEARNER_PERIOD if busy else PERIOD):
                    await self._tables.changed(self._tables.view.revision)
            except TimeoutError:
                continue

    async def _reconcile(self) -> bool:
        """One look. Whether something is on its way."""
        view = self._tables.view
        wanted = {
            peer_url(node.manager_addr) for node in view.all(Node) if node.spec.role == "manager" and node.manager_addr
        }
        members = await self._client.members() if self._client is not None else ()
        busy = False
        for member in members:
            if not wanted & set(member.peers):
                if member.name != self._me and len(members) > 1 and self._client is not None:
                    await self._client.remove(member.ID)
                    log.info("%s is no member of the store any more", member.name or member.peers)
                    members = tuple(other for other in members if other.ID != member.ID)
            elif member.learner:
                busy = True
                await self._bring_up(member)
        present = {peer for member in members for peer in member.peers}
        gone = [
            node.id
            for node in view.all(Node)
            if node.spec.role == "worker" and node.manager_addr and peer_url(node.manager_addr) not in present
        ]
        if gone:
            await self._tables.update(lambda tx: _dismiss(tx, gone))
        return busy

    async def _bring_up(self, member: Member) -> None:
        assert self._client is not None
        now = asyncio.get_running_loop().time()
        if not member.name:
            if now - self._unstarted.setdefault(member.ID, now) > START_TIMEOUT:
                log.warning("the manager at %s never started: it is no member until it asks again", member.peers)
                await self._client.remove(member.ID)
            return
        self._unstarted.pop(member.ID, None)
        if await self._client.promote(member.ID):
            log.info("%s is a full member of the store", member.name)


def _dismiss(tx: Transaction, nodes: Sequence[NodeID]) -> None:
    for identifier in nodes:
        node = tx.get(Node, identifier)
        if node is not None and node.spec.role == "worker":
            tx.put(msgspec.structs.replace(node, manager_addr=""))
