"""The cluster itself: one object in the store, with its settings, its CA and its join tokens."""

from typing import Any

import msgspec

from hivemesh.model.addr import Prefix
from hivemesh.model.container import LogDriver
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
    node_cert_expiry: Nanoseconds = 7_776_000_000_000_000  # 90 days; of certificates signed from then on
    signing_ca_cert: str = msgspec.field(default="", name="SigningCACert")  # PEM; the root that an administrator gave
    signing_ca_key: str = msgspec.field(default="", name="SigningCAKey")  # PEM; never kept here
    external_cas: tuple[dict[str, Any], ...] = msgspec.field(default=(), name="ExternalCAs")  # never any
    force_rotate: int = 0  # a greater number than before asks for a new root

    def __repr__(self) -> str:
        """Without the key, which is on its way to the store in a request."""
        return f"CAConfig(force_rotate={self.force_rotate})"


class EncryptionConfig(Spec, frozen=True, kw_only=True, omit_defaults=False):
    auto_lock_managers: bool = False


class TaskDefaults(Spec, frozen=True, kw_only=True):
    log_driver: LogDriver | None = None  # of tasks made from then on that name none


class SwarmSpec(Spec, frozen=True, kw_only=True, omit_defaults=False):
    name: str = CLUSTER_NAME
    labels: dict[str, str] = {}
    orchestration: Orchestration = Orchestration()
    raft: Raft = Raft()
    dispatcher: Dispatcher = Dispatcher()
    ca_config: CAConfig = msgspec.field(default=CAConfig(), name="CAConfig")
    encryption_config: EncryptionConfig = EncryptionConfig()
    task_defaults: TaskDefaults = TaskDefaults()


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be made anew with an update: join tokens, and the key that unlocks managers."""

    worker: bool = False
    manager: bool = False
    unlock_key: bool = False


class RootRotation(msgspec.Struct, frozen=True, kw_only=True):
    """The root that takes over. Until all nodes are with it both are trusted, and it signs."""

    ca_cert: str  # PEM
    ca_key: str  # PEM
    link: str  # PEM; its name and key, certified by the root before it

    def __repr__(self) -> str:
        """Without the key: this may end up in a log."""
        return "RootRotation(...)"


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
    rotation: RootRotation | None = None  # to another root, in progress
    unlock_key: str = ""  # that managers' keys are sealed with at rest; empty: they are not

    def __repr__(self) -> str:
        """Without keys and tokens: this may end up in a log."""
        return f"Cluster(id={self.id!r}, version={self.version})"
