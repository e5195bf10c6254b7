"""The first manager of a swarm: of a new one, or of one that comes back from a snapshot. State first, then identity."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import msgspec

from hivemesh.agent import identity as identities
from hivemesh.agent.facts import local_routes
from hivemesh.agent.identity import Facts, Identity
from hivemesh.agent.vault import Vault
from hivemesh.config import DaemonConfig
from hivemesh.control import rotation, swarm
from hivemesh.daemon import outside
from hivemesh.daemon.manager import store_directory
from hivemesh.model.addr import Address, host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT, Cluster
from hivemesh.model.errors import Conflict, HivemeshError, Invalid
from hivemesh.model.ids import NodeID, new_id
from hivemesh.model.node import Node, NodeSpec
from hivemesh.pki import make_request, new_token
from hivemesh.pki.seal import Seal
from hivemesh.store import backup
from hivemesh.store.api import Entry
from hivemesh.store.etcd import fill
from hivemesh.store.sealed import SealedStore
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import PREFIX, Tables, Transaction
from hivemesh.wire import codec
from hivemesh.wire.engine import SwarmInit


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the new manager is."""

    hostname: str
    addr: Address  # advertised
    vtep: Address
    listen: str  # host:port

    @property
    def manager_addr(self) -> str:
        return host_port(str(self.addr), parse_host_port(self.listen, DEFAULT_LISTEN_PORT, "listen address")[1])


async def found(request: SwarmInit, place: Place, config: DaemonConfig, now: float) -> Identity:
    """A new swarm on disk. Leaves nothing when it fails."""
    node_id = NodeID(new_id())
    authority = await asyncio.to_thread(swarm.first_root, request.spec.ca_config, now)
    objects = swarm.initial_objects(
        request,
        authority=authority,
        node_id=node_id,
        addr=place.addr,
        vtep=place.vtep,
        manager_addr=place.manager_addr,
        worker_token=new_token(authority.certificate),
        manager_token=new_token(authority.certificate),
        hostname=place.hostname,
        now=now,
        routes=await asyncio.to_thread(local_routes),
    )

    async def write(store: SealedStore) -> None:
        tables = Tables(store)
        await tables.load()
        await swarm.found(tables, objects)

    return await _establish(objects[0], node_id, place, config, now, write)


async def restore(data: bytes, place: Place, config: DaemonConfig, now: float) -> Identity:
    """The swarm of a snapshot (the bytes of the file) on disk, with this node as its only manager.

    Nodes come back by themselves where they still know an address at which a manager is. Raises `Invalid` for a file
    that is none; leaves nothing when it fails.
    """
    saved = await asyncio.to_thread(backup.unpack, data)
    snapshot = saved.snapshot()
    cluster = _cluster_in(snapshot.entries)
    made: list[NodeID] = []

    async def write(store: SealedStore) -> None:
        await fill(store, snapshot.entries)
        tables = Tables(store)
        await tables.load()
        await tables.update(lambda tx: _take_over(tx, made[0], place, now))

    made.append(_known_here(snapshot.entries, place) or NodeID(new_id()))
    return await _establish(cluster, made[0], place, config, now, write, after=saved.revision + backup.LEAP)


async def undo(config: DaemonConfig, *, last: bool) -> None:
    """Nothing of a swarm remains that could not be begun or joined; a `last` manager takes the state along."""
    shutil.rmtree(store_directory(config.data_dir), ignore_errors=True)
    identities.forget(config.data_dir)
    if last and config.store:
        with contextlib.suppress(HivemeshError):
            await outside.erase(config.store)


def sweep(config: DaemonConfig) -> None:
    """On a node in no swarm: remove what an interrupted join or leave left of an identity, private key and all.

    Where there is a state, the key that opens it stays: only `init`, which begins another one, removes both.
    """
    if not config.store and not store_directory(config.data_dir).exists():
        identities.forget(config.data_dir)


async def _establish(
    cluster: Cluster,
    node_id: NodeID,
    place: Place,
    config: DaemonConfig,
    now: float,
    write: Callable[[SealedStore], Awaitable[None]],
    after: int = 0,
) -> Identity:
    directory = store_directory(config.data_dir)
    shutil.rmtree(directory, ignore_errors=True)  # of an init that was interrupted before it had an identity
    authority = rotation.signer(cluster)
    try:
        seal = Seal(await asyncio.to_thread(Vault(config.data_dir).create))
        if config.store:
            store = await outside.create(config.store, seal, after)
        else:
            store = SealedStore(await SqliteStore.open(directory, after=after), seal)
        try:
            await write(store)
        finally:
            await store.close()
        csr = await asyncio.to_thread(make_request)
        certificate = authority.sign(
            csr.csr, node_id=node_id, cluster_id=cluster.id, role="manager", now=now, addresses=(place.addr,)
        )
        facts = Facts(
            node_id=node_id,
            cluster_id=cluster.id,
            role="manager",
            addr=place.addr,
            vtep=place.vtep,
            listen=place.listen,
            managers=(place.manager_addr,),
        )
        return identities.create(
            config.data_dir, facts, ca=rotation.roots(cluster), certificate=certificate, key=csr.key
        )
    except Conflict:  # of a store that is not ours
        identities.forget(config.data_dir)
        raise
    except BaseException:
        await undo(config, last=True)
        raise


def _cluster_in(entries: Iterable[Entry]) -> Cluster:
    """Raises `Invalid`."""
    found = [entry for entry in entries if entry.key.startswith(PREFIX[Cluster])]
    try:
        return codec.unpack(found[0].value, Cluster)
    except (IndexError, msgspec.MsgspecError):
        raise Invalid("this snapshot holds no swarm that this version of hivemesh can read") from None


def _known_here(entries: Iterable[Entry], place: Place) -> NodeID | None:
    """The node that was at this place when the snapshot was taken."""
    for entry in entries:
        if entry.key.startswith(PREFIX[Node]):
            node = codec.unpack(entry.value, Node)
            if node.addr == str(place.addr):
                return node.id
    return None


def _take_over(tx: Transaction, me: NodeID, place: Place, now: float) -> None:
    for node in list(tx.all(Node)):
        spec = msgspec.structs.replace(node.spec, role="worker")
        message = "not heard of since the swarm was restored"
        tx.put(msgspec.structs.replace(node.with_spec(spec), manager_addr="", state="unknown", message=message))
    known = tx.get(Node, me) or Node(id=me, spec=NodeSpec(), created=now)
    tx.put(
        msgspec.structs.replace(
            known,
            spec=msgspec.structs.replace(known.spec, role="manager"),
            description=msgspec.structs.replace(known.description, hostname=place.hostname),
            vtep=place.vtep,
            addr=str(place.addr),
            manager_addr=place.manager_addr,
            updated=now,
        )
    )
