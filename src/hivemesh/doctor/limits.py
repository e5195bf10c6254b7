"""What the doctor measures against: ports, settings, sizes, times; for those who gather and those who judge."""

from hivemesh.kernel.incoming import Port
from hivemesh.model.cluster import DEFAULT_DATA_PATH_PORT, DEFAULT_LISTEN_PORT

WEB_PORT = 2378
STORE_PORT = 12377
CLUSTER_PORT: Port = ("tcp", DEFAULT_LISTEN_PORT)
TUNNEL_PORT: Port = ("udp", DEFAULT_DATA_PATH_PORT)
PORTS: dict[Port, str] = {
    CLUSTER_PORT: "nodes reach managers there",
    TUNNEL_PORT: "the tunnels of overlay networks (VXLAN) end there",
    ("tcp", WEB_PORT): "metrics and the page of the network are served there",
    ("tcp", STORE_PORT): "managers keep their store together there",
}
"""Ours on every node, or on managers, and what for."""

FROM_OUTSIDE: tuple[Port, ...] = (CLUSTER_PORT, TUNNEL_PORT)
"""Those that other nodes must reach; `STORE_PORT` too, where there are several managers."""

LEAST: dict[str, int] = {
    "fs/inotify/max_user_instances": 512,
    "fs/inotify/max_user_watches": 65536,
    "net/ipv4/neigh/default/gc_thresh3": 4096,
    "net/ipv6/neigh/default/gc_thresh3": 4096,
    "net/netfilter/nf_conntrack_max": 131072,
    "user/max_net_namespaces": 1024,
}
"""Settings that end what a node can run, and what a busy one needs. Where the kernel has no such setting, none is
missed."""

DISK_WARNS, DISK_ERRS = 1 << 30, 100 << 20
"""Bytes free under which a disk is scarce, and as good as full."""
INODES_WARN = 0.02
UNDERLAY_LEAST = 1350
"""Bytes: IPv6 inside a tunnel needs 1280, and VXLAN adds up to 70."""
SKEW_WARNS, SKEW_ERRS = 2.0, 3600.0
"""Seconds between two clocks: times in logs and events do not fit any more; certificates begin an hour before they are
issued, so beyond that a new one is refused."""
CERTIFICATE_WARNS = 0.2
"""The part of its time that a certificate has left: it should have been renewed at about half of it."""
ROOT_WARNS = 180 * 24 * 3600.0
SLOW_STORE = 1.0
"""Seconds for one read: the control loops need many."""
