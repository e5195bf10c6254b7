"""Virtual addresses for sockets: led to a backend as they connect, in front of nftables, with the same slots. Pure.

A socket that was led away is a plain connection to its backend: no packet of it is translated. What is not led away
(ping, SCTP, UDP sockets that connect) finds the VIP in nftables' table as ever.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

from hivemesh.dataplane.balancer.api import Part, Virtual
from hivemesh.dataplane.balancer.nftables import hash_seed, slots_of
from hivemesh.kernel.api import NamespacePlan, SocketVip
from hivemesh.model.addr import Address

_MAIN = 254  # RT_TABLE_MAIN


def in_front(vips: Sequence[Virtual]) -> Part:
    """To be joined with the part of nftables for the same addresses."""
    return Part(sockets=tuple(_of_vip(vip) for vip in sorted(vips, key=lambda v: v.address.packed)))


@lru_cache(maxsize=16384)
def _of_vip(vip: Virtual) -> SocketVip:
    by_hash = vip.scheduler in ("source", "maglev")
    return SocketVip(
        address=vip.address,
        slots=slots_of(vip, vip.address.version),
        seed=hash_seed(vip.service) if by_hash else None,
    )


def own_address(plan: NamespacePlan) -> Callable[[Address], Address | None]:
    """Which address of the plan a socket gets on its way to another one: of the link that leads there."""
    subnets = sorted(plan.addresses, key=lambda a: -a.address.network.prefixlen)
    routes = sorted((r for r in plan.routes if r.table == _MAIN), key=lambda r: -r.destination.prefixlen)

    def of(destination: Address) -> Address | None:
        for near in subnets:
            if near.address.version == destination.version and destination in near.address.network:
                return near.address.ip
        for route in routes:
            if route.destination.version == destination.version and destination in route.destination:
                on_link = (a.address.ip for a in subnets if a.link == route.link)
                return next((a for a in on_link if a.version == destination.version), None)
        return None

    return of
