"""One machine with a network, backends on it and two ways to be balanced: a virtual address, and a published port.

The machine is a process with namespaces of its own (`kernel/mesh_rig.py`); what it holds comes from our plans, so that
whatever an engine puts into a plan is applied as in real life.
"""

import ipaddress
import itertools
from collections.abc import Mapping
from typing import Literal

from mesh_rig import INGRESS, Node, Reply, apply, ask, ask_each, balance_sockets, facts_of, run, serve

from hivemesh.dataplane.plan import GatewayLease, plan_host, plan_ingress, plan_overlay, plan_sandbox
from hivemesh.dataplane.plan.balancing import vip_part
from hivemesh.kernel.api import NamespacePlan
from hivemesh.model.addr import VNI, Address, mac_of
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import Balance, PortConfig, Scheduler, TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import Backend, NetworkItem, PublishItem, ServiceItem

Engine = Literal["nftables", "ipvs", "sockets"]
Place = Literal["vip", "mesh"]

USER = NetworkID("user00000000000000000000n")
BACKENDS = ("b1", "b2", "b3", "b4", "b5")
PORT = 8090
CLIENTS = range(100, 200)
"""Last bytes of the addresses the client has, in both places and families."""
_TARGETS = {"tcp": 80, "udp": 53}
_FACTS = facts_of(1)


def _network(identifier: NetworkID, third: int, own: Attachment | None = None) -> NetworkItem:
    prefixes = (ipaddress.ip_network(f"10.0.{third}.0/24"), ipaddress.ip_network(f"fd10:0:0:{third}::/64"))
    return NetworkItem(
        id=identifier,
        name=identifier.rstrip("0n"),
        vni=VNI(4096 + third),
        port=4789,
        subnets=tuple(Subnet(prefix=p, gateway=p.network_address + 1) for p in prefixes),
        ingress=identifier == INGRESS,
        own=own,
    )


def _attachment(identifier: NetworkID, third: int, last: int) -> Attachment:
    return Attachment(
        endpoint_id=EndpointID(f"e{third}{last}".ljust(25, "0")),
        network_id=identifier,
        addresses=(
            ipaddress.ip_interface(f"10.0.{third}.{last}/24"),
            ipaddress.ip_interface(f"fd10:0:0:{third}::{last:x}/64"),
        ),
        mac=mac_of(ipaddress.IPv4Address(f"10.0.{third}.{last}")),
    )


_NETWORKS = {INGRESS: _network(INGRESS, 0, _attachment(INGRESS, 0, 2)), USER: _network(USER, 1)}
_PORTS = tuple(PortConfig(published_port=PORT, target_port=t, protocol=p) for p, t in _TARGETS.items())  # type: ignore[arg-type]


def _task(name: str, last: int, *, on_ingress: bool) -> Task:
    attachments = [_attachment(INGRESS, 0, last)] if on_ingress else []
    return Task(
        id=TaskID(name.ljust(25, "0")),
        service_id=ServiceID("web"),
        service_name="web",
        slot=1,
        spec=TaskSpec(),
        ports=_PORTS if on_ingress else (),
        attachments=(*attachments, _attachment(USER, 1, last)),
    )


_CALLER = _task("caller", 9, on_ingress=False)
_TASKS = {name: _task(name, 11 + n, on_ingress=True) for n, name in enumerate(BACKENDS)}


def _backend(name: str, network: NetworkID, weight: int) -> Backend:
    task = _TASKS[name]
    found = next(a for a in task.attachments if a.network_id == network)
    return Backend(task=task.id, addresses=tuple(i.ip for i in found.addresses), weight=weight)


def _lease(name: str) -> GatewayLease:
    last = 11 + BACKENDS.index(name)
    return GatewayLease(
        v4=ipaddress.IPv4Interface(f"172.18.0.{last}/16"), v6=ipaddress.IPv6Interface(f"fd77:1::{last:x}/64")
    )


def vip(version: int) -> Address:
    return ipaddress.ip_address("10.0.1.5" if version == 4 else "fd10:0:0:1::5")


class Machine:
    """`spread`, then `ask`. The client is a sandbox on the network (vip), or somebody outside (mesh)."""

    def __init__(self, engine: Engine) -> None:
        self._sockets = engine == "sockets"
        self._engine: Literal["", "nftables", "ipvs"] = "" if engine == "sockets" else engine
        self.node = Node("machine")
        self._ports = itertools.count(10_000)

    def close(self) -> None:
        self.node.close()

    def start(self) -> None:
        if self._sockets:
            lack = self.node.call(balance_sockets)
            assert not lack, lack
        self._apply(plan_host(_FACTS, self._publishes({}, "rr"), (), (), 4789))
        self._apply(*(plan_overlay(network, _FACTS, ()) for network in _NETWORKS.values()))
        self.spread("vip", {})
        self.spread("mesh", {})
        self._apply(*(plan_sandbox(task, _NETWORKS, _FACTS, _lease(name)) for name, task in _TASKS.items()))
        self._outside()
        self.node.call(run, "ip", "-batch", "-", text=_addresses("eth0", "10.0.1", "fd10:0:0:1::"), at="caller000000")
        for name, task in _TASKS.items():
            for protocol, target in _TARGETS.items():
                addresses = ("::",) if protocol == "tcp" else ("0.0.0.0", "::")
                for address in addresses:
                    self.node.call(serve, name, protocol, target, address, len(addresses) > 1, at=task.id[:12])

    def _outside(self) -> None:
        for command in (
            "netns add client",
            "link add up0 type veth peer name eth0 netns client",
            "addr add 192.0.2.1/24 dev up0",
            "addr add fd02::1/64 dev up0 nodad",
            "link set up0 up",
            "-n client link set eth0 up",
            "-n client link set lo up",
        ):
            self.node.call(run, "ip", *command.split())
        self.node.call(run, "ip", "-batch", "-", text=_addresses("eth0", "192.0.2", "fd02::"), at="client")

    def _apply(self, *plans: NamespacePlan) -> None:
        failed = self.node.call(apply, plans)
        assert not failed, failed

    def _publishes(self, weights: Mapping[str, int], scheduler: Scheduler) -> list[PublishItem]:
        return [
            PublishItem(
                service=ServiceID("web"),
                service_name="web",
                protocol=protocol,
                port=PORT,
                backends=tuple(_backend(name, INGRESS, weight) for name, weight in weights.items()),
                balance=Balance(scheduler=scheduler, engine=self._engine),
            )
            for protocol in _TARGETS
        ]

    def spread(self, place: Place, weights: Mapping[str, int], scheduler: Scheduler = "rr", *, at: str = "") -> None:
        """Spread connections over these backends; `at`: those of a backend's own sandbox, not the caller's."""
        if place == "mesh":
            self._apply(plan_ingress(_NETWORKS[INGRESS], _FACTS, self._publishes(weights, scheduler)))
            return
        self._apply(self.plan_of_vip(weights, scheduler, at))

    def plan_of_vip(self, weights: Mapping[str, int], scheduler: Scheduler = "rr", at: str = "") -> NamespacePlan:
        """The sandbox of whoever asks."""
        service = ServiceItem(
            network=USER,
            service=ServiceID("web"),
            name="web",
            vips=(vip(4), vip(6)),
            balance=Balance(scheduler=scheduler, engine=self._engine),
            backends=tuple(_backend(name, USER, weight) for name, weight in weights.items()),
        )
        part = vip_part([service], "nftables", sockets=self._sockets)
        return plan_sandbox(_TASKS.get(at, _CALLER), _NETWORKS, _FACTS, _lease(at) if at else None, part)

    def _entry(self, place: Place, protocol: str, version: int, at: str) -> tuple[str, str, int]:
        """Namespace of the client, address, port."""
        if place == "vip":
            return (_TASKS[at].id[:12] if at else "caller000000"), str(vip(version)), _TARGETS[protocol]
        return "client", "192.0.2.1" if version == 4 else "fd02::1", PORT

    def ask(
        self, place: Place, protocol: str, version: int, times: int = 1, *, at: str = "", keep: bool = False
    ) -> list[Reply | str]:
        """One new connection for each question, always from the same address."""
        client, host, port = self._entry(place, protocol, version, at)
        if at:
            found: list[Reply | str] = self.node.call(ask, protocol, host, port, times=times, at=client)
            return found
        replies: list[Reply | str] = []
        for _ in range(times):
            # Never a port again: for a while conntrack remembers where a datagram from it went
            source = (self.client(place, version, CLIENTS[0]), next(self._ports))
            replies += self.node.call(ask, protocol, host, port, source=source, keep=keep, at=client)
        return replies

    def ask_from_all(self, place: Place, protocol: str, version: int) -> dict[str, str]:
        """Which server each client meets, or the name of the error."""
        client, host, port = self._entry(place, protocol, version, "")
        sources = [self.client(place, version, last) for last in CLIENTS]
        replies: list[Reply | str] = self.node.call(ask_each, protocol, host, port, sources, at=client)
        return {s: r.server if isinstance(r, Reply) else r for s, r in zip(sources, replies, strict=True)}

    def client(self, place: Place, version: int, last: int) -> str:
        if place == "vip":
            return f"10.0.1.{last}" if version == 4 else f"fd10:0:0:1::{last:x}"
        return f"192.0.2.{last}" if version == 4 else f"fd02::{last:x}"

    def call(self, namespace: str, *argv: str) -> str:
        """What a command says in a sandbox."""
        said: str = self.node.call(run, *argv, at=namespace)
        return said

    def ask_again(self) -> list[Reply]:
        from mesh_rig import ask_again

        replies: list[Reply] = self.node.call(ask_again)
        return replies


def _addresses(link: str, four: str, six: str) -> str:
    lines = [f"addr add {four}.{last}/24 dev {link}" for last in CLIENTS]
    lines += [f"addr add {six}{last:x}/64 dev {link} nodad" for last in CLIENTS]
    return "\n".join(lines) + "\n"
