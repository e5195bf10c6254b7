"""Which engine balances what: the service's label decides, else the node's own choice."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from hivemesh.dataplane.balancer.api import Balanced, Balancer, Part
from hivemesh.dataplane.balancer.ipvs import Ipvs
from hivemesh.dataplane.balancer.nftables import Nftables
from hivemesh.model.service import Balance

Engine = Literal["nftables", "ipvs"]
BASE: Engine = "nftables"
"""Asked also when it has nothing to balance: it keeps connections in `ingress_sbox` from beginning on the overlay."""
ENGINES: Mapping[str, Balancer] = {BASE: Nftables(), "ipvs": Ipvs()}

B = TypeVar("B", bound=Balanced)


def by_engine(entries: Iterable[tuple[Balance, B]], default: Engine, *, lacks_ipvs: bool) -> dict[str, list[B]]:
    """The entries by the engine that serves them; `BASE` is always there, first."""
    found: dict[str, list[B]] = {BASE: []}
    for balance, entry in entries:
        engine = balance.engine or default
        found.setdefault(BASE if lacks_ipvs and engine == "ipvs" else engine, []).append(entry)
    return found


def joined(parts: Sequence[Part]) -> Part:
    """All of them in one namespace."""
    sysctls: dict[str, str] = {}
    for part in parts:
        sysctls |= part.sysctls
    return Part(
        tables=tuple(table for part in parts for table in part.tables),
        sysctls=sysctls,
        ipvs=tuple(service for part in parts for service in part.ipvs),
        sockets=tuple(vip for part in parts for vip in part.sockets),
    )
