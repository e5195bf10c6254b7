"""Judges of one machine, whether it is to join a swarm or is in one: pure, from facts to findings."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from hivemesh.doctor import limits
from hivemesh.model.addr import Prefix
from hivemesh.model.cluster import DEFAULT_POOL
from hivemesh.wire.doctor import Disk, Finding, Machine, Severity

OLDEST_PODMAN = (4, 0)


@dataclass(frozen=True, slots=True)
class Judge:
    """Makes findings of one check at one place."""

    check: str
    where: str

    def find(
        self, severity: Severity, what: str, *, why: str = "", do: str = "", proof: str = "", fix: str = ""
    ) -> Finding:
        return Finding(
            check=self.check, severity=severity, where=self.where, what=what, why=why, remedy=do, proof=proof, fix=fix
        )


def access(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if not machine.privileged:
        yield judge.find(
            "warning", "not everything could be looked at: hivemesh doctor does not run as root",
            why="the kernel's features, other firewalls and who has a port are shown to root only",
            do="run `sudo hivemesh doctor`, or start hivemeshd and ask it",
        )  # fmt: skip
    for words in machine.unseen:
        yield judge.find("warning", f"could not be looked at: {words}", do="mend that, and run hivemesh doctor again")


def kernel(machine: Machine, judge: Judge) -> Iterator[Finding]:
    for words in machine.lacks:
        fix = "modules" if machine.modules else ""
        more = f"; not loaded are: {', '.join(machine.modules)}" if machine.modules else ""
        yield judge.find(
            "error", words, why=f"networks of the swarm are made of it{more}",
            do="hivemesh doctor --fix loads them" if fix else "install the distribution's full kernel, and boot it",
            proof="lsmod | grep -E 'vxlan|nf_tables'", fix=fix,
        )  # fmt: skip


def namespaces(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if machine.settings.get("net/ipv6/conf/all/disable_ipv6") == "1":
        yield judge.find(
            "note", "IPv6 is switched off on this machine", why="networks with IPv6 have none to offer outside of it",
            do="sysctl -w net.ipv6.conf.all.disable_ipv6=0, if you want it",
            proof="sysctl net.ipv6.conf.all.disable_ipv6",
        )  # fmt: skip
    if machine.leftovers:
        yield judge.find(
            "note", f"left over from a test of this kernel that was killed: {', '.join(machine.leftovers)}",
            do="hivemesh doctor --fix removes them", proof="ip netns", fix="leftovers",
        )  # fmt: skip


def ports(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if machine.member:
        return  # they are ours; what could not be had stopped the daemon, in words
    for holder in machine.holders:
        port = f"{holder.port}/{holder.protocol}"
        use = limits.PORTS[holder.protocol, holder.port]
        if not holder.program:
            yield judge.find(
                "warning", f"port {port} belongs to the kernel: somebody else has VXLAN devices there",
                why=f"{use}; both can share the port as long as no network of theirs has a number (VNI) of ours, from "
                    "4097 on",
                do="leave Docker's swarm (`docker swarm leave`), or give the other overlay another port",
                proof="ip -d link show type vxlan",
            )  # fmt: skip
            continue
        reserve = holder.port in (limits.WEB_PORT, limits.STORE_PORT)
        yield judge.find(
            "warning" if reserve else "error", f"port {port} is taken by {holder.program} (process {holder.pid})",
            why=use, do=f"stop {holder.program}, or give it another port",
            proof=f"ss -{holder.protocol[0]}lnp 'sport = :{holder.port}'",
        )  # fmt: skip


def other_swarm(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if machine.docker_swarm:
        yield judge.find(
            "warning", "Docker on this machine is in a swarm of its own",
            why="it has the same ports (2377/tcp, 4789/udp) and the same names for its bridges",
            do="docker swarm leave --force, with Docker's own socket: DOCKER_HOST=unix:///var/run/docker.sock",
            proof="docker -H unix:///var/run/docker.sock info --format '{{.Swarm.LocalNodeState}}'",
        )  # fmt: skip


def pools(machine: Machine, judge: Judge) -> Iterator[Finding]:
    """Before there are networks. Networks that are there are judged by `member.routes`."""
    if machine.member:
        return
    pool = DEFAULT_POOL
    for link, prefix in machine.routes:
        if _overlap(prefix, pool):
            yield judge.find(
                "note" if prefix.prefixlen > 16 else "warning",
                f"the route to {prefix} (by {link}) lies in the default address pool {pool}",
                why="networks are cut around the routes of the first manager; what other nodes have is not known then, "
                    "and containers on a network with such addresses do not reach what lies behind the route",
                do="choose other pools: swarm init --default-addr-pool 10.128.0.0/9",
                proof=f"ip route show {prefix}",
            )  # fmt: skip


def _overlap(prefix: Prefix, pool: str) -> bool:
    other = IPv4Network(pool)
    return isinstance(prefix, IPv4Network) and prefix.overlaps(other)


def mtu(machine: Machine, judge: Judge) -> Iterator[Finding]:
    for link in machine.links:
        if link.mtu < limits.UNDERLAY_LEAST and not link.name.startswith("lo"):
            yield judge.find(
                "warning", f"{link.name} has an MTU of {link.mtu} bytes",
                why="tunnels over it carry less than the 1280 bytes that IPv6 needs, and little of anything else",
                do=f"ip link set {link.name} mtu 1500, if the network there carries it; or choose another link with "
                   "--data-path-addr",
                proof=f"ip link show {link.name}",
            )  # fmt: skip


def firewall(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if not machine.member:  # in a swarm, probes tell whether it matters: see `between`
        for closed in machine.incoming:
            yield judge.find(
                "warning", f"{closed.where} drops what no rule lets in, and no rule lets in {', '.join(closed.ports)}",
                why="other nodes must reach these ports of this machine",
                do=opening(closed.tool, closed.ports, closed.where),
                proof="nft list ruleset; iptables -S INPUT",
            )  # fmt: skip
    for where in machine.forwarding:
        yield judge.find(
            "note", f"{where} drops what is forwarded",
            why="hivemeshd puts accepts for its own bridges in front of that end, with the comment `hivemesh`",
            proof="nft list ruleset | grep hivemesh; iptables -S FORWARD",
        )  # fmt: skip


def opening(tool: str, ports: tuple[str, ...], where: str) -> str:
    """Commands that open ports, in the words of whoever manages the firewall."""
    if tool == "ufw":
        return "; ".join(f"ufw allow {port}" for port in ports)
    if tool == "firewalld":
        return " ".join(["firewall-cmd --permanent", *(f"--add-port={p}" for p in ports), "&& firewall-cmd --reload"])
    split = [port.partition("/") for port in ports]
    if where.startswith("table "):
        table, _, chain = where.removeprefix("table ").partition(", chain ")
        return "; ".join(f"nft insert rule {table} {chain} {proto} dport {port} accept" for port, _, proto in split)
    command = where.partition(",")[0]
    return "; ".join(f"{command} -I INPUT -p {proto} --dport {port} -j ACCEPT" for port, _, proto in split)


def clock(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if machine.unsynchronised and not machine.member:
        yield judge.find(
            "note", "the clock follows no time server, as far as the kernel knows",
            why="certificates are refused when clocks differ by more than an hour, and times in logs do not fit",
            do="run chrony, ntpd or systemd-timesyncd; on a virtual machine whose host does it, all is well",
            proof="timedatectl; chronyc tracking",
        )  # fmt: skip


def groups(machine: Machine, judge: Judge) -> Iterator[Finding]:
    place = machine.cgroups
    if place == "none":
        yield judge.find(
            "error", "no cgroups are mounted", why="containers cannot be started without them",
            do="mount them: mount -t cgroup2 none /sys/fs/cgroup", proof="mount | grep cgroup",
        )  # fmt: skip
        return
    if place != "v2":
        yield judge.find(
            "note", f"cgroups are {'hybrid' if place == 'hybrid' else place}, not unified (v2)",
            why="Podman is told to use runc where both runtimes are there; all else works as with v2",
            do="boot with systemd.unified_cgroup_hierarchy=1 for v2", proof="stat -fc %T /sys/fs/cgroup",
        )  # fmt: skip
    for name in machine.controllers:
        yield judge.find(
            "warning", f"the cgroup controller {name} is missing",
            why=f"limits on {name} cannot be kept: services that ask for one are refused here",
            do=f"enable it: cgroup_enable={name} on the kernel's command line, or Delegate=yes in a container",
            proof="cat /proc/cgroups",
        )  # fmt: skip


def engine(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if machine.engine != "podman":
        return
    podman = machine.podman
    if not podman.version:
        yield judge.find(
            "error", "podman is not installed, or does not start", why="it runs the containers of services",
            do="install podman (apt-get install podman, dnf install podman)", proof="podman --version",
        )  # fmt: skip
        return
    if version(podman.version) < OLDEST_PODMAN:
        yield judge.find(
            "error", f"podman {podman.version} is too old", why="its API before 4.0 lacks what services need",
            do="install podman 4.0 or newer", proof="podman --version",
        )  # fmt: skip
    if not podman.runtime:
        yield judge.find(
            "error", "no OCI runtime is installed", why="Podman starts containers through runc or crun",
            do="install crun (or runc)", proof="podman info --format '{{.Host.OCIRuntime.Name}}'",
        )  # fmt: skip
    elif podman.why:
        yield judge.find("note", podman.why, why="Podman's defaults do not work here", proof="podman info")


def version(text: str) -> tuple[int, ...]:
    """`4.9.3-rhel` as (4, 9, 3)."""
    numbers = []
    for part in text.split("-")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def settings(machine: Machine, judge: Judge) -> Iterator[Finding]:
    for key, least in limits.LEAST.items():
        value = machine.settings.get(key)
        if value is not None and value.isdecimal() and int(value) < least:
            dotted = key.replace("/", ".")
            yield judge.find(
                "error" if value == "0" else "note", f"{dotted} is {value}", why=_ENDS[key],
                do=f"hivemesh doctor --fix sets it to {least}, now and at each boot", proof=f"sysctl {dotted}",
                fix="settings",
            )  # fmt: skip


_ENDS = {
    "fs/inotify/max_user_instances": "each container's log and many servers take one; at the end they do not start",
    "fs/inotify/max_user_watches": "servers that watch files stop to notice changes",
    "net/ipv4/neigh/default/gc_thresh3": "with more peers than that on all networks together, sending fails at random",
    "net/ipv6/neigh/default/gc_thresh3": "with more peers than that on all networks together, sending fails at random",
    "net/netfilter/nf_conntrack_max": "with more connections than that, new ones are dropped",
    "user/max_net_namespaces": "each task needs one",
}


def disks(machine: Machine, judge: Judge) -> Iterator[Finding]:
    for disk in machine.disks:
        if disk.read_only:
            yield judge.find(
                "error", f"the disk under {disk.path} is read-only", why="nothing can be kept or started",
                do="see why in dmesg, mend it, and mount it again: mount -o remount,rw",
                proof=f"findmnt -T {disk.path}",
            )  # fmt: skip
        elif disk.free < limits.DISK_WARNS or disk.inodes < limits.INODES_WARN:
            full = disk.free < limits.DISK_ERRS or disk.inodes == 0
            yield judge.find(
                "error" if full else "warning", f"the disk under {disk.path} has {_left(disk)} left",
                why="tasks are rejected here, and managers refuse changes, once it is full",
                do="podman system prune, or a larger disk", proof=f"df -h {disk.path}; df -i {disk.path}",
            )  # fmt: skip


def _left(disk: Disk) -> str:
    if disk.inodes < limits.INODES_WARN:
        return f"{disk.inodes:.1%} of its inodes"
    return f"{disk.free >> 20} MiB"


def names(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if not machine.nameservers:
        yield judge.find(
            "note", "/etc/resolv.conf names no server",
            why="names in the swarm are answered all the same; other names are unknown to containers, and images are "
                "pulled by their registry's address only",
            do="write `nameserver ADDRESS` into /etc/resolv.conf", proof="cat /etc/resolv.conf",
        )  # fmt: skip


def balancers(machine: Machine, judge: Judge) -> Iterator[Finding]:
    if machine.ipvs:
        chosen = machine.balancer == "ipvs"
        yield judge.find(
            "error" if chosen else "note", f"IPVS: {machine.ipvs}",
            why="the daemon is started with --balancer ipvs" if chosen
            else "services labelled for IPVS are balanced by nftables here",
            do="modprobe ip_vs" if chosen else "", proof="cat /proc/net/ip_vs",
        )  # fmt: skip
    if machine.sockets:
        yield judge.find(
            "note", f"sockets are not led to backends as they connect: {machine.sockets}",
            why="nftables balances all; each connection inside the swarm costs a little more",
        )  # fmt: skip
    if not machine.sctp:
        yield judge.find(
            "note", "this kernel has no SCTP", why="ports published for it do not work on this node",
            do="modprobe sctp", proof="lsmod | grep sctp",
        )  # fmt: skip
