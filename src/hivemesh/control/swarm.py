"""The swarm itself: how it begins, its settings, its join tokens."""

import ipaddress
import secrets
from collections.abc import Callable, Iterable, Sequence

import msgspec

from hivemesh import pki
from hivemesh.control import allocator, rotation
from hivemesh.control.services import OUT_OF_SEQUENCE
from hivemesh.engine import logdriver
from hivemesh.ipam import pools as arithmetic
from hivemesh.model import ids
from hivemesh.model.addr import Address, Prefix, parse_prefix
from hivemesh.model.cluster import (
    CLUSTER_NAME,
    DEFAULT_DATA_PATH_PORT,
    DEFAULT_POOL,
    DEFAULT_SUBNET_SIZE,
    CAConfig,
    Cluster,
    Dispatcher,
    EncryptionConfig,
    Renewal,
    SwarmSpec,
)
from hivemesh.model.errors import Conflict, Invalid, OutOfSequence
from hivemesh.model.ids import ClusterID, NetworkID, NodeID
from hivemesh.model.network import INGRESS, Network, NetworkSpec
from hivemesh.model.node import Node, NodeDescription, NodeSpec
from hivemesh.store.tables import Tables, Transaction, View
from hivemesh.wire.engine import SwarmInit

SMALLEST_SUBNET = 29
"""Docker's limit for `--default-addr-pool-mask-length`."""
DATA_PATH_PORTS = range(1024, 49152)
MIN_HEARTBEAT = 100_000_000
"""Nanoseconds. Docker has no limit: agents that beat all the time do nothing else."""
MIN_CERTIFICATE_LIFETIME = 3600 * 1_000_000_000


def initial_objects(
    request: SwarmInit,
    *,
    authority: pki.Authority,
    node_id: NodeID,
    addr: Address,
    vtep: Address,
    manager_addr: str,
    worker_token: str,
    manager_token: str,
    hostname: str,
    now: float,
    routes: Iterable[Prefix] = (),
    new_id: Callable[[], str] = ids.new_id,
) -> tuple[Cluster, Node, Network]:
    """The cluster, its first node (with its ingress address) and the ingress network of a new swarm.

    `routes` are the host's, `manager_addr` is host:port. Raises `Invalid` for what was asked and cannot be.
    """
    size = request.subnet_size or DEFAULT_SUBNET_SIZE
    asked = msgspec.structs.replace(request.spec, name=request.spec.name or CLUSTER_NAME)
    if request.auto_lock_managers:
        asked = msgspec.structs.replace(asked, encryption_config=EncryptionConfig(auto_lock_managers=True))
    spec = check_spec(asked)
    tx = Transaction(View())
    cluster = tx.put(
        Cluster(
            id=ClusterID(new_id()),
            spec=spec,
            created=now,
            updated=now,
            pools=choose_pools(request.default_addr_pool, size, routes),
            subnet_size=size,
            pool6=local_pool6(),
            data_path_port=check_data_path_port(request.data_path_port),
            ca_cert=authority.certificate,
            ca_key=authority.key,
            worker_token=worker_token,
            manager_token=manager_token,
            unlock_key=_unlock_key(spec, "", anew=True),
        )
    )
    tx.put(
        Node(
            id=node_id,
            spec=NodeSpec(role="manager", availability=request.availability),
            created=now,
            updated=now,
            description=NodeDescription(hostname=hostname),
            vtep=vtep,
            addr=str(addr),
            manager_addr=manager_addr,
        )
    )
    network = Network(id=NetworkID(new_id()), spec=NetworkSpec(name=INGRESS, ingress=True), created=now, updated=now)
    tx.put(network)
    allocator.allocate(tx, now, new_id)
    ingress, node = tx.get(Network, network.id), tx.get(Node, node_id)
    assert ingress is not None
    assert node is not None
    if ingress.error:
        raise Invalid(f"no free pool: {ingress.error}; choose others with --default-addr-pool")
    return cluster, node, ingress


def first_root(asked: CAConfig, now: float) -> pki.Authority:
    """The root of a new swarm: one that was given, or a fresh one. Raises `Invalid`."""
    if asked.signing_ca_cert or asked.signing_ca_key:
        return pki.given_root(asked.signing_ca_cert, asked.signing_ca_key, now)
    return pki.Authority.create(now)


async def found(tables: Tables, objects: Iterable[Cluster | Node | Network]) -> None:
    """Write the initial objects, in one commit. Raises `Conflict` when the store has a swarm already."""

    def begin(tx: Transaction) -> None:
        if tx.all(Cluster):
            raise Conflict("this data directory already holds a swarm: leave it first, or use an empty directory")
        for value in objects:
            tx.put(value)

    await tables.update(begin)


def choose_pools(given: Sequence[str], subnet_size: int, routes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The IPv4 pools subnets are cut from.

    Given pools must not meet each other or a route of the host (its default route aside). Without any, the default
    pool is taken, less what the host's routes cover.
    """
    if not 1 <= subnet_size <= SMALLEST_SUBNET:
        raise Invalid(f"invalid subnet size {subnet_size}: the mask length must be 1 to {SMALLEST_SUBNET}")
    covered = [route for route in routes if route.prefixlen]
    if not given:
        left = arithmetic.without(ipaddress.ip_network(DEFAULT_POOL), covered, subnet_size)
        if not left:
            raise Invalid(
                f"no free pool: the host's routes cover all of {DEFAULT_POOL}, the default; choose another range with "
                "--default-addr-pool"
            )
        return left
    pools = [parse_prefix(text, "default address pool") for text in given]
    for pool in pools:
        if pool.version != 4:
            raise Invalid(
                f"invalid default address pool {pool}: it must be IPv4; IPv6 subnets come from a range of "
                "the swarm's own"
            )
        if pool.prefixlen > subnet_size:
            raise Invalid(
                f"invalid default address pool {pool}: no /{subnet_size} subnet fits into it; choose a larger pool or "
                "another --default-addr-pool-mask-length"
            )
        route = arithmetic.overlapping(pool, covered)
        if route is not None:
            raise Invalid(f"default address pool {pool} overlaps the host's route {route}: choose a range that is free")
    clash = arithmetic.first_overlap(pools)
    if clash is not None:
        raise Invalid(f"default address pools {clash[0]} and {clash[1]} overlap")
    return tuple(pools)


def local_pool6() -> Prefix:
    """A range of our own: fd00::/8 and 40 random bits (RFC 4193, section 3.2)."""
    return ipaddress.IPv6Network(((0xFD << 120) | (secrets.randbits(40) << 80), 48))


def check_data_path_port(port: int) -> int:
    """The UDP port of the tunnels; 0 is the default."""
    if port and port not in DATA_PATH_PORTS:
        raise Invalid(
            f"invalid data path port {port}: use {DATA_PATH_PORTS.start} to {DATA_PATH_PORTS.stop - 1}, or 0 for "
            f"{DEFAULT_DATA_PATH_PORT}"
        )
    return port or DEFAULT_DATA_PATH_PORT


def check_spec(spec: SwarmSpec) -> SwarmSpec:
    """Raises `Invalid`."""
    if spec.name != CLUSTER_NAME:
        raise Invalid("modification of cluster name is not allowed")
    if spec.orchestration.task_history_retention_limit < 0:
        raise Invalid("invalid task history limit: it must not be negative")
    beat = spec.dispatcher.heartbeat_period
    if beat < 0:
        raise Invalid("invalid heartbeat period: it must not be negative")
    if 0 < beat < MIN_HEARTBEAT:
        raise Invalid("invalid heartbeat period: it must be 100ms or more, or 0 for the default of 5s")
    if spec.ca_config.node_cert_expiry < MIN_CERTIFICATE_LIFETIME:
        raise Invalid("invalid certificate expiry: it must be one hour or more")
    if spec.task_defaults.log_driver is not None:
        logdriver.configuration(spec.task_defaults.log_driver)
    return msgspec.structs.replace(
        spec,
        dispatcher=spec.dispatcher if beat else Dispatcher(),
        ca_config=msgspec.structs.replace(spec.ca_config, signing_ca_key=""),  # kept beside the settings, if at all
    )


def update(tx: Transaction, version: int, spec: SwarmSpec, now: float, renewal: Renewal | None = None) -> Cluster:
    """Replace the settings. Old tokens admit nobody from then on. Raises `OutOfSequence` or `Invalid`."""
    cluster = tx.cluster
    if version != cluster.version:
        raise OutOfSequence(OUT_OF_SEQUENCE)
    renewal = renewal or Renewal()
    checked = check_spec(spec)
    cluster = rotation.begin(cluster, spec.ca_config, now)
    return tx.put(
        msgspec.structs.replace(
            cluster,
            spec=checked,
            unlock_key=_unlock_key(checked, cluster.unlock_key, anew=renewal.unlock_key),
            worker_token=pki.new_token(cluster.ca_cert) if renewal.worker else cluster.worker_token,
            manager_token=pki.new_token(cluster.ca_cert) if renewal.manager else cluster.manager_token,
            updated=now,
        )
    )


def _unlock_key(spec: SwarmSpec, known: str, *, anew: bool) -> str:
    if not spec.encryption_config.auto_lock_managers:
        return ""
    return known if known and not anew else pki.new_unlock_key()
