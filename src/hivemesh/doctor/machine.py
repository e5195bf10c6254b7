"""Facts of this machine: read, tried in a namespace made for that, and never changed.

Everything under /proc, /sys and /etc is read below `root`, so that a test can show a picture of another machine.
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from hivemesh.dataplane.plan.names import GATEWAY_BRIDGE, INGRESS_SANDBOX
from hivemesh.dns.hostconf import read_host_conf
from hivemesh.doctor.limits import FROM_OUTSIDE, LEAST, PORTS
from hivemesh.engine.host import host_needs
from hivemesh.kernel import incoming, ipvs, machine, netns, probe
from hivemesh.model.addr import Interface, Prefix
from hivemesh.model.errors import HivemeshError
from hivemesh.wire.doctor import Closed, Disk, Holder, Link, Machine, Podman

T = TypeVar("T")

MODULES = (
    "vxlan",
    "veth",
    "bridge",
    "nf_tables",
    "nft_numgen",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nf_conntrack",
    "nfnetlink",
)
CONTROLLERS = ("cpu", "memory", "pids")
LISTENING, UNCONNECTED = "0A", "07"
"""States of sockets that others may talk to (include/net/tcp_states.h): TCP_LISTEN, and TCP_CLOSE of UDP."""
PODMAN_TIMEOUT = 5.0
_STA_UNSYNC = 0x40  # linux/timex.h
_OURS = ("hm_", "hm-", "lo")
_PROBE_NAME = re.compile(r"hm-probe-(\d+)")


def gather(
    name: str,
    *,
    data_dir: Path,
    member: bool = False,
    engine: str = "podman",
    balancer: str = "nftables",
    sockets: str = "",
    root: Path = Path("/"),
) -> Machine:
    """Takes some 0.2 s, and needs root for most of it. `sockets` is why they are not balanced, as the daemon knows."""
    unseen: list[str] = []

    def attempt(what: str, look: Callable[[], T], otherwise: T) -> T:
        try:
            return look()
        except (OSError, HivemeshError) as error:
            unseen.append(f"{what}: {error}")
            return otherwise

    privileged = os.geteuid() == 0
    # A member was tried when it joined; a kernel that runs loses nothing
    lacks: list[str] = attempt("what the kernel can do", probe.missing, []) if privileged and not member else []
    ports = tuple(FROM_OUTSIDE)
    closed: list[incoming.Closing] = (
        attempt("other firewalls", lambda: incoming.closing(ports), []) if privileged else []
    )
    return Machine(
        name=name,
        member=member,
        privileged=privileged,
        engine=engine,
        balancer=balancer,
        lacks=tuple(lacks),
        modules=_loadable(root) if lacks else (),
        ipvs=attempt("IPVS", ipvs.missing, "") if privileged else "",
        sockets=sockets,
        sctp=machine.has_sctp(),
        holders=() if member else tuple(holders(root)),
        links=tuple(attempt("addresses", lambda: _links(root), [])),
        routes=tuple((link, prefix) for link, prefix in _routes() if not link.startswith(_OURS)),
        incoming=tuple(
            Closed(where=one.where, tool=_tool(root), ports=tuple(f"{port}/{protocol}" for protocol, port in one.ports))
            for one in closed
        ),
        forwarding=tuple(attempt("other firewalls", incoming.forwarding, [])) if privileged else (),
        unsynchronised=_unsynchronised(),
        cgroups=cgroups(root),
        controllers=tuple(missing_controllers(root)),
        podman=_podman() if engine == "podman" else Podman(),
        settings={key: _setting(root, key) for key in (*LEAST, "net/ipv6/conf/all/disable_ipv6")},
        disks=tuple(_disks((data_dir, Path("/var/lib/containers"), Path("/run")))),
        nameservers=read_host_conf(root / "etc/resolv.conf").nameservers,
        docker_swarm=(root / "var/lib/docker/swarm/docker-state.json").exists(),
        leftovers=tuple(leftovers()) if privileged else (),
        unseen=tuple(dict.fromkeys(unseen)),
    )


def was_member(data_dir: Path) -> bool:
    """Whether this machine is in a swarm, for who cannot ask its daemon: what that keeps, on disk and in the kernel."""
    return (data_dir / "node.json").exists() or netns.exists(INGRESS_SANDBOX)


# --- ports ------------------------------------------------------------------------------------------------------------


def holders(root: Path = Path("/")) -> Iterable[Holder]:
    """Who has our ports, on any address."""
    wanted: dict[str, tuple[str, int]] = {}
    for protocol, state in (("tcp", LISTENING), ("udp", UNCONNECTED)):
        for table in (protocol, f"{protocol}6"):
            for line in _lines(root / "proc/thread-self/net" / table)[1:]:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == state and (protocol, port) in PORTS:
                    wanted[fields[9]] = protocol, port
    programs = _owners(root, wanted) if wanted else {}
    seen = set()
    for inode, (protocol, port) in wanted.items():
        program, pid = programs.get(inode, ("", 0))
        seen.add(Holder(protocol=protocol, port=port, program=program, pid=pid))
    return sorted(seen, key=lambda holder: (holder.port, holder.protocol, holder.pid))


def _owners(root: Path, inodes: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The process behind each socket; none behind the kernel's own."""
    named = {f"socket:[{inode}]": inode for inode in inodes if inode != "0"}
    found: dict[str, tuple[str, int]] = {}
    for process in (root / "proc").glob("[0-9]*") if named else ():
        with suppress(OSError):
            for handle in (process / "fd").iterdir():
                with suppress(OSError):
                    inode = named.get(os.readlink(handle))
                    if inode is not None:
                        found[inode] = (process / "comm").read_text().strip(), int(process.name)
    return found


# --- network ----------------------------------------------------------------------------------------------------------


def _links(root: Path) -> list[Link]:
    by_name: dict[str, tuple[int, list[Interface]]] = {}
    for here in machine.addresses():
        if not here.link.startswith(_OURS):
            by_name.setdefault(here.link, (here.mtu, []))[1].append(here.address)
    every = _setting(root, "net/ipv4/conf/all/rp_filter") or "0"
    return [
        Link(
            name=name,
            mtu=mtu,
            addresses=tuple(addresses),
            # The greater of both counts; 2 is loose
            strict=max(every, _setting(root, f"net/ipv4/conf/{name}/rp_filter") or "0") == "1",
        )
        for name, (mtu, addresses) in by_name.items()
    ]


def _routes() -> list[tuple[str, Prefix]]:
    return [(link, prefix) for link, prefix in machine.routes() if prefix.prefixlen and link != GATEWAY_BRIDGE]


def _tool(root: Path) -> str:
    """Who manages the firewall here."""
    if "ENABLED=yes" in _lines(root / "etc/ufw/ufw.conf"):
        return "ufw"
    return "firewalld" if (root / "run/firewalld").is_dir() or (root / "run/firewalld.pid").exists() else ""


# --- the machine ------------------------------------------------------------------------------------------------------


def _loadable(root: Path) -> tuple[str, ...]:
    """Modules of ours that are on the disk and not loaded."""
    loaded = {line.split()[0] for line in _lines(root / "proc/modules")}
    known = "\n".join(_lines(root / "lib/modules" / os.uname().release / "modules.dep"))
    return tuple(name for name in MODULES if name not in loaded and f"/{name}.ko" in known)


def _unsynchronised() -> bool:
    """Whether the kernel's clock follows no other, as adjtimex(2) says."""
    buffer = ctypes.create_string_buffer(256)  # struct timex has 208 bytes; mode 0 only asks
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(buffer) < 0:
        return False
    status_at = 40 if ctypes.sizeof(ctypes.c_long) == 8 else 20
    return bool(int.from_bytes(buffer.raw[status_at : status_at + 4], "little") & _STA_UNSYNC)


def cgroups(root: Path = Path("/")) -> str:
    """v2, v1, hybrid (v1, with v2 for systemd's own use) or none."""
    place = root / "sys/fs/cgroup"
    if (place / "cgroup.controllers").exists():
        return "v2"
    if (place / "unified").is_dir():
        return "hybrid"
    return "v1" if (place / "memory").is_dir() or (place / "cpu").is_dir() else "none"


def missing_controllers(root: Path = Path("/")) -> list[str]:
    """What limits of containers need and the kernel does not have."""
    place = root / "sys/fs/cgroup"
    listed = _lines(place / "cgroup.controllers")
    if listed:
        return [name for name in CONTROLLERS if name not in listed[0].split()]
    return [name for name in CONTROLLERS if not (place / name).is_dir()]


def _podman() -> Podman:
    try:
        done = subprocess.run(
            ["podman", "--version"], capture_output=True, text=True, timeout=PODMAN_TIMEOUT, check=False
        )
        version = done.stdout.strip().rpartition(" ")[2]
    except (OSError, subprocess.TimeoutExpired):
        version = ""
    runtime = next((name for name in ("crun", "runc") if shutil.which(name, path=_WIDE_PATH)), "")
    return Podman(version=version, runtime=runtime, why=host_needs().why)


_WIDE_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin:/sbin"


def _disks(paths: Iterable[Path]) -> Iterable[Disk]:
    seen: set[int] = set()
    for path in paths:
        there = next(place for place in (path, *path.parents) if place.exists())
        with suppress(OSError):
            if (device := there.stat().st_dev) in seen:
                continue
            seen.add(device)
            state = os.statvfs(there)
            inodes = state.f_favail / state.f_files if state.f_files else 1.0
            yield Disk(
                path=str(path),
                free=state.f_bavail * state.f_frsize,
                size=state.f_blocks * state.f_frsize,
                inodes=inodes,
                read_only=bool(state.f_flag & os.ST_RDONLY),
            )


def leftovers() -> list[str]:
    """Namespaces that a probe made whose process has ended."""
    found = []
    for name in netns.names():
        match = _PROBE_NAME.fullmatch(name)
        if match and not Path("/proc", match[1]).exists():
            found.append(name)
    return found


def _setting(root: Path, key: str) -> str | None:
    lines = _lines(root / "proc/sys" / key)
    return lines[0].strip() if lines else None


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text(errors="replace").splitlines()
    return []
