"""What is balanced in a namespace, handed to the engines that are to do it. Pure."""

from collections.abc import Callable, Iterable

from hivemesh.dataplane.balancer.api import Part, Virtual, published, virtual
from hivemesh.dataplane.balancer.engines import BASE, ENGINES, Engine, by_engine, joined
from hivemesh.dataplane.balancer.sockets import in_front
from hivemesh.wire.control import PublishItem, ServiceItem

Describe = Callable[[ServiceItem], tuple[Virtual, ...]]


def mesh_part(
    publishes: Iterable[PublishItem], default: Engine, *, outside: str, overlay: str, lacks_ipvs: bool = False
) -> Part:
    """All published ports, in `ingress_sbox`."""
    entries = by_engine(((item.balance, published(item)) for item in publishes), default, lacks_ipvs=lacks_ipvs)
    return joined([ENGINES[name].mesh(ports, outside=outside, overlay=overlay) for name, ports in entries.items()])


def vip_part(
    services: Iterable[ServiceItem],
    default: Engine,
    describe: Describe = virtual,
    *,
    lacks_ipvs: bool = False,
    sockets: bool = False,
) -> Part:
    """All virtual addresses of a sandbox's networks. `describe` may remember what it said of an item, which spares the
    engine the work for all that did not change. With `sockets`, services whose labels do not ask for an engine are
    balanced there, in front of nftables."""
    entries = [(item.balance, vip) for item in services for vip in describe(item)]
    parts = [ENGINES[name].vips(vips) for name, vips in by_engine(entries, default, lacks_ipvs=lacks_ipvs).items()]
    if sockets and default == BASE:
        parts.append(in_front([vip for balance, vip in entries if not balance.engine]))
    return joined(parts)
