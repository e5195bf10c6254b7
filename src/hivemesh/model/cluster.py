"""The cluster itself: one object in the store, with its settings, its CA and its join tokens."""

import msgspec

from hivemesh.model.addr import Prefix
from hivemesh.model.ids import ClusterID
from hivemesh.model.service import Nanoseconds, Spec

CLUSTER_NAME = "default"
DEFAULT_POOL = "10.0.0.0/8"
DEFAULT_SUBNET_SIZE = 24
DEFAULT_DATA_PATH_PORT = 4789
DEFAULT_LISTEN_PORT = 2377


class Orchestration(Spec, frozen=True, kw_only=True, omit_defaults=False):
    task_history_retention_limit: int = 5


class Raft(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """Kept for the CLI's sake; hivemesh has no raft of its own."""

    snapshot_interval: int = 10000
    keep_old_snapshots: int = 0
    log_entries_for_slow_followers: int = 500
    election_tick: int = 10
    heartbeat_tick: int = 1


class Dispatcher(Spec, frozen=True, kw_only=True, omit_defaults=False):
    heartbeat_period: Nanoseconds = 5_000_000_000


class CAConfig(Spec, frozen=True, kw_only=True, omit_defaults=False):
    node_cert_expiry: Nanoseconds = 7_776_000_000_000_000  # 90 days


class EncryptionConfig(Spec, frozen=True, kw_only=True, omit_defaults=False):
    auto_lock_managers: bool = False


class SwarmSpec(Spec, frozen=True, kw_only=True, omit_defaults=False):
    name: str = CLUSTER_NAME
    labels: dict[str, str] = {}
    orchestration: Orchestration = Orchestration()
    raft: Raft = Raft()
    dispatcher: Dispatcher = Dispatcher()
    ca_config: CAConfig = msgspec.field(default=CAConfig(), name="CAConfig")
    encryption_config: EncryptionConfig = EncryptionConfig()
    task_defaults: dict[str, str] = {}


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Settings fixed at `swarm init` and secrets only managers hold."""

    id: ClusterID
    spec: SwarmSpec
    version: int = 0
    created: float = 0.0
    updated: float = 0.0
    pools: tuple[Prefix, ...] = ()  # IPv4 pools that /subnet_size subnets are cut from
    subnet_size: int = DEFAULT_SUBNET_SIZE
    pool6: Prefix | None = None  # an fd00::/48 of the cluster's own (RFC 4193), cut into /64
    data_path_port: int = DEFAULT_DATA_PATH_PORT
    ca_cert: str = ""  # PEM
    ca_key: str = ""  # PEM
    worker_token: str = ""
    manager_token: str = ""
