"""The daemon's settings, parsed once into a frozen value."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hivemesh.model.generic import GenericResource

DATA_DIR = Path("/var/lib/hivemesh")
RUN_DIR = Path("/run/hivemesh")
SOCKET_NAME = "docker.sock"
WEB = "127.0.0.1:2378"
Counts = Literal["bytes", "connections", "off"]


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
    counts: Counts = "bytes"  # of published ports; each includes what follows
    store: str = ""  # URL of an etcd cluster that holds the swarm's state; empty: our own
    labels: dict[str, str] = field(default_factory=dict)
    generic: tuple[GenericResource, ...] = ()  # what tasks may take of this node
    web: str = WEB  # where page and metrics are served, host:port; empty: nowhere
    web_certificate: Path | None = None  # with its key; None: one of our own, where TLS is needed
    web_key: Path | None = None

    @property
    def local_dir(self) -> Path:
        """Of networks and containers that are this node's alone."""
        return self.data_dir / "local"

    @property
    def balances_sockets(self) -> bool:
        """Whether sockets are to be led in front of nftables: IPVS has nothing behind them."""
        return self.socket_balancing and self.balancer == "nftables"
