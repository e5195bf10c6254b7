"""The daemon's settings, parsed once into a frozen value."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hivemesh.model.generic import GenericResource

DATA_DIR = Path("/var/lib/hivemesh")
RUN_DIR = Path("/run/hivemesh")
SOCKET_NAME = "docker.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """What `hivemeshd` was started with."""

    data_dir: Path = DATA_DIR
    run_dir: Path = RUN_DIR
    socket: Path = RUN_DIR / SOCKET_NAME
    group: str = ""  # that may use the socket; empty: hivemesh or docker, if there is one
    engine: str = "podman"  # or "process"
    process_images: dict[str, tuple[str, ...]] = field(default_factory=dict)
    balancer: Literal["nftables", "ipvs"] = "nftables"
    socket_balancing: bool = True  # in front of nftables, where the kernel allows it
    store: str = ""  # URL of an etcd cluster that holds the swarm's state; empty: our own
    labels: dict[str, str] = field(default_factory=dict)
    generic: tuple[GenericResource, ...] = ()  # what tasks may take of this node
