"""What one machine's facts are made of: a table of machines that are not well, and one that is."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hivemesh.doctor.before import version
from hivemesh.doctor.registry import CHECKS, diagnose
from hivemesh.model.addr import address_of
from hivemesh.wire.doctor import Closed, Disk, Finding, Holder, Link, Machine, Podman

WELL = Machine(
    name="n1",
    links=(Link(name="eth0", mtu=1500, addresses=(IPv4Interface("192.0.2.1/24"),)),),
    routes=(("eth0", IPv4Network("192.0.2.0/24")),),
    podman=Podman(version="4.9.3", runtime="crun"),
    settings={"fs/inotify/max_user_instances": "8192", "net/ipv4/neigh/default/gc_thresh3": None},
    disks=(Disk(path="/var/lib/hivemesh", free=50 << 30, size=100 << 30),),
    nameservers=(address_of(IPv4Interface("192.0.2.53/32")),),
)


def found(machine: Machine) -> list[Finding]:
    return list(diagnose("n1", machine).findings)


def test_machine_that_is_well_raises_nothing() -> None:
    assert found(WELL) == []


@dataclass(frozen=True)
class Ill:
    changed: dict[str, Any]
    check: str
    severity: str
    words: str
    remedy: str
    fix: str = ""


GONE = "this kernel lacks VXLAN (Operation not supported): load its module, or install the distribution's full kernel"
ILL = {
    "no root": Ill({"privileged": False}, "access", "warning", "does not run as root", "sudo"),
    "a look that failed": Ill({"unseen": ("IPVS: no",)}, "access", "warning", "IPVS: no", "again"),
    "no VXLAN": Ill({"lacks": (GONE,)}, "kernel", "error", "VXLAN", "full kernel"),
    "VXLAN not loaded": Ill({"lacks": (GONE,), "modules": ("vxlan",)}, "kernel", "error", "VXLAN", "--fix", "modules"),
    "no IPv6": Ill({"settings": {"net/ipv6/conf/all/disable_ipv6": "1"}}, "namespaces", "note", "IPv6", "sysctl"),
    "leftovers": Ill({"leftovers": ("hm-probe-1",)}, "namespaces", "note", "hm-probe-1", "--fix", "leftovers"),
    "port taken": Ill({"holders": (Holder(protocol="tcp", port=2377, program="dockerd", pid=7),)},
                      "ports", "error", "2377/tcp is taken by dockerd (process 7)", "stop dockerd"),
    "web port taken": Ill({"holders": (Holder(protocol="tcp", port=2378, program="httpd", pid=7),)},
                          "ports", "warning", "2378/tcp", "stop httpd"),
    "VXLAN of others": Ill({"holders": (Holder(protocol="udp", port=4789),)},
                           "ports", "warning", "somebody else has VXLAN", "docker swarm leave"),
    "Docker's swarm": Ill({"docker_swarm": True}, "docker", "warning", "swarm of its own", "docker swarm leave"),
    "wide route in the pool": Ill({"routes": (("tun0", IPv4Network("10.0.0.0/8")),)},
                                  "pools", "warning", "10.0.0.0/8 (by tun0)", "--default-addr-pool"),
    "small route in the pool": Ill({"routes": (("tun0", IPv4Network("10.9.8.0/24")),)},
                                   "pools", "note", "10.9.8.0/24", "--default-addr-pool"),
    "narrow link": Ill({"links": (Link(name="ppp0", mtu=1280, addresses=()),)}, "mtu", "warning", "1280", "mtu 1500"),
    "closed by ufw": Ill({"incoming": (Closed(where="iptables, chain INPUT", tool="ufw", ports=("4789/udp",)),)},
                         "firewall", "warning", "4789/udp", "ufw allow 4789/udp"),
    "closed by firewalld": Ill({"incoming": (Closed(where="c", tool="firewalld", ports=("4789/udp", "2377/tcp")),)},
                               "firewall", "warning", "4789/udp", "--add-port=4789/udp --add-port=2377/tcp"),
    "closed by hand": Ill({"incoming": (Closed(where="iptables-legacy, chain INPUT", ports=("2377/tcp",)),)},
                          "firewall", "warning", "2377/tcp", "iptables-legacy -I INPUT -p tcp --dport 2377 -j ACCEPT"),
    "closed by nftables": Ill({"incoming": (Closed(where="table inet f, chain in", ports=("2377/tcp",)),)},
                              "firewall", "warning", "2377/tcp", "nft insert rule inet f in tcp dport 2377 accept"),
    "nothing forwarded": Ill({"forwarding": ("iptables, chain FORWARD",)}, "firewall", "note", "forwarded", ""),
    "clock alone": Ill({"unsynchronised": True}, "clock", "note", "time server", "chrony"),
    "no cgroups": Ill({"cgroups": "none"}, "cgroups", "error", "no cgroups", "mount"),
    "hybrid cgroups": Ill({"cgroups": "hybrid"}, "cgroups", "note", "hybrid", "unified"),
    "no memory controller": Ill({"controllers": ("memory",)}, "cgroups", "warning", "memory", "cgroup_enable=memory"),
    "no Podman": Ill({"podman": Podman()}, "engine", "error", "podman is not installed", "install podman"),
    "old Podman": Ill({"podman": Podman(version="3.4.4", runtime="crun")}, "engine", "error", "too old", "4.0"),
    "no runtime": Ill({"podman": Podman(version="4.3.1")}, "engine", "error", "runtime", "crun"),
    "limits": Ill({"podman": Podman(version="4.3.1", runtime="runc", why="limits cannot be raised")},
                  "engine", "note", "limits cannot be raised", ""),
    "low setting": Ill({"settings": {"fs/inotify/max_user_instances": "128"}},
                       "settings", "note", "fs.inotify.max_user_instances is 128", "512", "settings"),
    "no namespaces": Ill({"settings": {"user/max_net_namespaces": "0"}},
                         "settings", "error", "user.max_net_namespaces is 0", "1024", "settings"),
    "disk scarce": Ill({"disks": (Disk(path="/d", free=500 << 20, size=9 << 30),)},
                       "disk", "warning", "500 MiB", "prune"),
    "disk full": Ill({"disks": (Disk(path="/d", free=0, size=9 << 30),)}, "disk", "error", "0 MiB", "prune"),
    "no inodes": Ill({"disks": (Disk(path="/d", free=9 << 30, size=9 << 30, inodes=0.0),)},
                     "disk", "error", "inodes", "prune"),
    "read-only": Ill({"disks": (Disk(path="/d", free=9 << 30, size=9 << 30, read_only=True),)},
                     "disk", "error", "read-only", "remount"),
    "no name server": Ill({"nameservers": ()}, "resolv.conf", "note", "no server", "nameserver"),
    "IPVS chosen, not there": Ill({"ipvs": "none", "balancer": "ipvs"}, "balancers", "error", "IPVS", "modprobe"),
    "no IPVS": Ill({"ipvs": "none"}, "balancers", "note", "IPVS", ""),
    "no eBPF": Ill({"sockets": "refused"}, "balancers", "note", "refused", ""),
    "no SCTP": Ill({"sctp": False}, "balancers", "note", "SCTP", "modprobe sctp"),
}  # fmt: skip


@pytest.mark.parametrize("name", ILL)
def test_machine_that_is_not_well_is_told_what_and_what_to_do(name: str) -> None:
    ill = ILL[name]
    (finding,) = found(replace(WELL, **ill.changed))
    assert (finding.check, finding.severity, finding.where) == (ill.check, ill.severity, "n1")
    assert ill.words in finding.what
    assert ill.remedy in finding.remedy
    assert finding.fix == ill.fix


def test_member_is_not_told_of_its_own_ports_and_what_probes_show_better() -> None:
    taken = (Holder(protocol="tcp", port=2377, program="hivemeshd", pid=7),)
    closed = (Closed(where="iptables, chain INPUT", ports=("4789/udp",)),)
    pool = (("tun0", IPv4Network("10.0.0.0/8")),)
    member = replace(WELL, member=True, holders=taken, incoming=closed, routes=pool, unsynchronised=True)
    assert found(member) == []


def test_process_engine_needs_no_podman() -> None:
    assert found(replace(WELL, engine="process", podman=Podman())) == []


def test_worst_findings_come_first() -> None:
    machine = replace(WELL, sctp=False, cgroups="none", docker_swarm=True)
    assert [finding.severity for finding in found(machine)] == ["error", "warning", "note"]
    assert diagnose("n1", machine).worst == "error"
    assert diagnose("n1", WELL).worst is None


@pytest.mark.parametrize(
    ("text", "parsed"), [("4.9.3", (4, 9, 3)), ("5.0.0-rc1", (5, 0, 0)), ("4.3.1+ds1", (4, 3)), ("", ())]
)
def test_versions_are_read_as_far_as_they_are_numbers(text: str, parsed: tuple[int, ...]) -> None:
    assert version(text) == parsed


def test_page_of_the_doctor_lists_every_check() -> None:
    page = (Path(__file__).parents[3] / "docs/design/doctor.md").read_text()
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+) \| (?:machine|node|managers|swarm) \|$", page, re.MULTILINE)
    assert rows == [(check.name, check.about) for check in CHECKS]
