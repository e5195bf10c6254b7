"""What a lab consists of, as values: its machines, their names and addresses, and where it keeps things."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

from hivemesh.model.errors import Invalid

UNDERLAY4 = IPv4Interface("198.51.100.1/24")
"""TEST-NET-2 of RFC 5737; the interface is the underlay's own, every machine's default route."""
UNDERLAY6 = IPv6Interface("fd00:198:51:100::1/64")
FIRST_HOST, CLIENT_HOST = 11, 100
MAX_NODES = 50
DEFAULT_NAME = "lab"
CLIENT = "client"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """One machine of a lab. `number` is the last part of both its addresses: 11 is 198.51.100.11 and …::11."""

    lab: str
    name: str
    number: int

    @property
    def v4(self) -> IPv4Interface:
        return IPv4Interface((IPv4Address(int(UNDERLAY4.network.network_address) + self.number), 24))

    @property
    def v6(self) -> IPv6Interface:
        """The digits of `number` read the same in both families, so the host part is hexadecimal 0x11 for 11."""
        return IPv6Interface((IPv6Address(int(UNDERLAY6.network.network_address) + int(str(self.number), 16)), 64))

    @property
    def netns(self) -> str:
        return f"hm-{self.lab}-{self.name}"

    @property
    def mark(self) -> str:
        """The name its first process goes by: how the machine is found, by anybody, without a file that says so."""
        return f"hivemesh-lab/{self.lab}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A lab's machines: nodes `n1`, `n2`, … and one client host that is no node."""

    lab: str
    nodes: int

    def __post_init__(self) -> None:
        check_name(self.lab)
        if not 1 <= self.nodes <= MAX_NODES:
            raise Invalid(f"a lab has 1 to {MAX_NODES} nodes, not {self.nodes}")

    @property
    def node_specs(self) -> tuple[MachineSpec, ...]:
        return tuple(
            MachineSpec(lab=self.lab, name=f"n{index + 1}", number=FIRST_HOST + index) for index in range(self.nodes)
        )

    @property
    def client_spec(self) -> MachineSpec:
        return MachineSpec(lab=self.lab, name=CLIENT, number=CLIENT_HOST)

    @property
    def machines(self) -> tuple[MachineSpec, ...]:
        return (*self.node_specs, self.client_spec)

    @property
    def underlay(self) -> str:
        """The namespace that holds the bridge between the machines."""
        return f"hm-{self.lab}-underlay"

    def hosts_file(self) -> str:
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
        lines += [f"{address.ip} {m.name}" for m in self.machines for address in (m.v4, m.v6)]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where labs keep things on the real machine; every lab has a folder of its own name in both."""

    disk: Path
    """Data directories and image stores. `HIVEMESH_LAB_DIR` moves it."""
    run: Path = Path("/run/hivemesh-lab")
    """Sockets. Fixed, since the kernel limits a socket's path to 107 bytes."""

    @classmethod
    def of_environment(cls) -> "Places":
        return cls(disk=Path(os.environ.get("HIVEMESH_LAB_DIR") or "/var/lib/hivemesh-lab").absolute())

    @property
    def images(self) -> Path:
        """One image store for all labs, read only to their nodes. The underscore keeps it apart from labs' names."""
        return self.disk / "_images"

    def machine_disk(self, spec: MachineSpec) -> Path:
        return self.disk / spec.lab / spec.name

    def machine_run(self, spec: MachineSpec) -> Path:
        return self.run / spec.lab / spec.name


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Invalid(f"a lab's name is up to 16 small letters, digits and dashes, not {name!r}")
