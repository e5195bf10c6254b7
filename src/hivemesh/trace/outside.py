"""The hops of a packet from outside: to a port that this node publishes, in ingress or host mode, and back. Pure."""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hivemesh.dataplane.plan.host import HOST_PORTS
from hivemesh.dataplane.plan.ingress import GATEWAY_LINK
from hivemesh.dataplane.plan.names import GATEWAY_BRIDGE, INGRESS_SANDBOX, TABLE
from hivemesh.kernel.api import HOST, NamespacePlan
from hivemesh.model.addr import Address
from hivemesh.trace.way import Balancing, Broken, Listener, Plans, Reach, Setting, Step, TableWanted, Want
from hivemesh.wire.nft import protocol_port
from hivemesh.wire.trace import Passage, Protocol


def published(plans: Plans, protocol: str, port: int, backends: tuple[Address, ...]) -> Iterator[Step]:
    """A published port of this node, from outside up to the balancer."""
    host, sandbox = plans[HOST], plans.get(INGRESS_SANDBOX)
    if sandbox is None:
        yield Step(
            namespace=HOST, title=f"port {port}/{protocol}",
            wants=(Broken(what="there is no ingress_sbox here", cause="the node has no ingress address yet"),),
        )  # fmt: skip
        return
    neighbors = sorted((n for n in host.neighbors if n.link == GATEWAY_BRIDGE), key=str)
    yield _on_the_host(host, protocol, port, "ingress_sbox", neighbors)
    shown = ", ".join(map(str, backends))
    wants: list[Want] = [link for link in sandbox.links if link.name == GATEWAY_LINK]
    wants += sorted((a for a in sandbox.addresses if a.link == GATEWAY_LINK), key=str)
    wants += sorted((r for r in sandbox.routes if r.link == GATEWAY_LINK), key=str)
    wants += sorted((n for n in sandbox.neighbors if n.link == GATEWAY_LINK), key=str)
    wants += [Setting(key=key, value=value) for key, value in sandbox.sysctls.items() if key in _FORWARDING]
    wants += [
        TableWanted(family=table.family, name=table.name, what=f"{port}/{protocol} leads to {shown}")
        for table in sandbox.tables
    ]
    if sandbox.ipvs:
        wants.append(Balancing(what=f"{port}/{protocol} leads to {shown}"))
    if not backends:
        wants.append(
            Broken(what="no backend takes new connections", cause="no task of the service runs and is healthy")
        )
    passage = Passage(link=GATEWAY_LINK, out=False)
    yield Step(namespace=INGRESS_SANDBOX, title="balancer of the mesh", wants=tuple(wants), passage=passage)


def _on_the_host(host: NamespacePlan, protocol: str, port: int, to: str, neighbors: Iterable[Want] = ()) -> Step:
    """From the machine's own address to the gateway bridge."""
    settings = [Setting(key=key, value=value) for key, value in host.sysctls.items() if key in _FORWARDING]
    links = [link for link in host.links if link.name == GATEWAY_BRIDGE]
    addresses = sorted((a for a in host.addresses if a.link == GATEWAY_BRIDGE), key=str)
    table = TableWanted(family="inet", name=TABLE, what=f"{port}/{protocol} goes on to {to}")
    return Step(
        namespace=HOST,
        title=f"published port {port}/{protocol}",
        wants=(table, *settings, *links, *addresses, *neighbors),
        passage=Passage(link=GATEWAY_BRIDGE, out=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """A port of this node that leads to one sandbox, past the mesh: the way in and back out from the bridge on."""

    sandbox: str
    address: Address
    steps: tuple[Step, ...]
    back: tuple[Step, ...]


def hosted(plans: Plans, protocol: Protocol, port: int, version: int) -> tuple[Step, tuple[Hosted, ...]] | None:
    """A port in host mode: what happens on the host, and the way by that version of IP; None without such a port."""
    found = _hosted(plans, protocol, port, version)
    return None if found is None else (_on_the_host(plans[HOST], protocol, port, str(found.address)), (found,))


def _hosted(plans: Plans, protocol: Protocol, port: int, version: int) -> Hosted | None:
    maps = (m for table in plans[HOST].tables for m in table.maps if m.name == f"{HOST_PORTS}{version}")
    value = next((m.elements.get(protocol_port(protocol, port)) for m in maps), None)
    if not isinstance(value, bytes):
        return None
    width = 4 if version == 4 else 16
    address, target = ipaddress.ip_address(value[:width]), int.from_bytes(value[width : width + 2], "big")
    for plan in plans.values():
        held = next((a for a in plan.addresses if a.address.ip == address), None)
        if held is not None and plan.namespace not in (HOST, INGRESS_SANDBOX):
            wants: list[Want] = [link for link in plan.links if link.name == held.link]
            wants += [held, Listener(protocol=protocol, port=target)]
            title = f"{address} on {held.link}, port {target}"
            into = Step(
                namespace=plan.namespace, title=title, wants=tuple(wants), passage=Passage(link=held.link, out=False)
            )
            routes = sorted((r for r in plan.routes if r.link == held.link), key=str)
            out = Step(
                namespace=plan.namespace, title=f"out through {held.link}", wants=tuple(routes),
                passage=Passage(link=held.link, out=True),
            )  # fmt: skip
            return Hosted(sandbox=plan.namespace, address=address, steps=(into,), back=(out,))
    return None


def asks(address: Address, port: int) -> Step:
    """A node that asks from outside, in its own namespace."""
    passage = Passage(out=True)
    wants = (Reach(address=address, source=None),)
    return Step(namespace=HOST, title=f"out to {address}, port {port}", wants=wants, passage=passage)


def answered() -> Step:
    """The answer, there."""
    return Step(namespace=HOST, title="back: the answer", wants=(), passage=Passage(out=False, back=True))


def entered() -> Step:
    """What comes from another node, as it comes to this machine."""
    return Step(namespace=HOST, title="arrival from outside", wants=(), passage=Passage(out=False))


def left() -> Step:
    """The answer, on its way to that node."""
    return Step(namespace=HOST, title="back: out to the caller", wants=(), passage=Passage(out=True, back=True))


def back_out(*, mesh: bool) -> Iterator[Step]:
    """From the balancer of the `mesh`, or the sandbox, back to the host, where the asked address is put in again."""
    if mesh:
        passage = Passage(link=GATEWAY_LINK, out=True, back=True)
        yield Step(namespace=INGRESS_SANDBOX, title="back: balancer of the mesh", wants=(), passage=passage)
    passage = Passage(link=GATEWAY_BRIDGE, out=False, back=True)
    yield Step(namespace=HOST, title="back: published port", wants=(), passage=passage)


_FORWARDING = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
)
