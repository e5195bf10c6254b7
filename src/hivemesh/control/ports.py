"""Published ports: what may be asked for, what is granted, and where each is open. Pure.

A published port is open at every address of every node, or where a label of its service says. Two services may have
one number at addresses that are plainly apart; inside the mesh, where those addresses do not show any more, the second
one then goes by a number of its own: its `Door`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import msgspec

from hivemesh.control import constraints
from hivemesh.control.balance import PUBLISH_LABEL
from hivemesh.model.addr import Prefix, parse_prefix
from hivemesh.model.cursor import Cursor
from hivemesh.model.errors import Exhausted, Invalid, Unsupported
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import DYNAMIC_PORTS, Door, EndpointSpec, PortConfig, Service, ServiceSpec, number_inside
from hivemesh.model.task import Task
from hivemesh.store.tables import Transaction, View

DOORS = range(61000, 65536)
"""Numbers inside the mesh for ports whose own is taken there: above what Linux gives to outgoing connections."""
_NAME = re.compile(r"([1-9][0-9]{0,4})(?:/(tcp|udp|sctp))?")

Number = tuple[str, int]
"""Protocol and published port."""


# --- where ports are open --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """A port is open at those of a node's addresses that are in `addresses`, and at all of them on nodes that meet one
    of `nodes` (placement constraints)."""

    addresses: tuple[Prefix, ...]
    nodes: tuple[str, ...]

    def accepts(self, node: Node) -> bool:
        """Whether the port is open at every address of the node."""
        return any(constraints.parse(text).accepts(node) for text in self.nodes)

    def is_apart(self, other: "Opening") -> bool:
        """Whether there can be no address where both are open, whatever becomes of the nodes."""
        return not (self.nodes or other.nodes) and not any(
            one.version == two.version and one.overlaps(two) for one, two in product(self.addresses, other.addresses)
        )


Openings = Mapping[tuple[str, int], Opening]
"""By protocol ("": of all that have none of their own) and published port."""


def openings(labels: Mapping[str, str]) -> Openings:
    """What a service's labels restrict. Raises `Invalid`."""
    found = {}
    for label, value in labels.items():
        if label.startswith(PUBLISH_LABEL):
            name = _NAME.fullmatch(label.removeprefix(PUBLISH_LABEL))
            if name is None or int(name[1]) > 65535:
                raise Invalid(
                    f"invalid label {label}: expected {PUBLISH_LABEL}PORT or {PUBLISH_LABEL}PORT/PROTOCOL, with a port "
                    "from 1 to 65535 and tcp, udp or sctp"
                )
            found[name[2] or "", int(name[1])] = _opening(label, value)
    return found


def opening(found: Openings, port: PortConfig) -> Opening | None:
    """Where `port` (with its real number) is open; None: everywhere."""
    number = port.published_port
    return found.get((port.protocol, number)) or found.get(("", number))


def openings_as_stored(service: Service) -> Openings:
    """Of a service whose labels were checked when it was stored; what nobody checked restricts nothing."""
    try:
        return openings(service.spec.labels)
    except Invalid:
        return {}


@lru_cache(maxsize=4096)
def _opening(label: str, value: str) -> Opening:
    addresses: list[Prefix] = []
    nodes: list[str] = []
    for item in (part.strip() for part in value.split(",")):
        try:
            if "=" in item:
                key = constraints.parse(item).key
                if not constraints.is_known(key):
                    known = ", ".join(constraints.ATTRIBUTES)
                    raise Invalid(f"nodes have no {key}: use node.labels.NAME, engine.labels.NAME or one of {known}")
                nodes.append(item)
                continue
            if "%" in item:
                raise Invalid(f"{item} names a link, and links of other nodes have other names")
            prefix = parse_prefix(item, "address")
            if prefix.prefixlen == prefix.max_prefixlen and prefix.network_address.is_unspecified:
                raise Invalid(f"{item} is no address of a node: write {item}/0 for all addresses of its family")
            addresses.append(prefix)
        except Invalid as error:
            raise Invalid(
                f"invalid label {label}={value}: {error}. Write addresses of nodes or constraints, separated by "
                "commas, such as 198.51.100.11,2001:db8::/64,node.labels.edge==true"
            ) from None
    return Opening(tuple(addresses), tuple(nodes))


# --- what may be asked for -------------------------------------------------------------------------------------------


def check(view: View, spec: ServiceSpec, current: Service | None) -> None:
    """Raises `Invalid` or `Unsupported`. `current` is the service being updated."""
    _endpoint(spec.endpoint_spec)
    restricted = openings(spec.labels)
    wanted = [port for port in _with_kept_numbers(spec.endpoint_spec.ports, current) if port.published_port]
    _labels(spec, restricted, wanted)
    if any(port.publish_mode == "ingress" for port in spec.endpoint_spec.ports) and ingress(view) is None:
        raise Invalid(
            "service needs ingress network, but no ingress network is present: make one with "
            "`network create --driver overlay --ingress NAME`"
        )
    if any(port.protocol == "sctp" for port in spec.endpoint_spec.ports) and not any(
        "sctp" in node.description.protocols for node in view.all(Node)
    ):
        raise Unsupported(
            "EndpointSpec: protocol sctp is not supported by the kernel of any node: load its module on some (modprobe "
            "sctp), or use tcp or udp"
        )
    _are_free(view, wanted, restricted, current)


def ingress(view: View) -> Network | None:
    """The network that carries published-port traffic."""
    return next((network for network in view.all(Network) if network.spec.ingress), None)


def _endpoint(endpoint: EndpointSpec) -> None:
    published = set()
    for port in endpoint.ports:
        if not 1 <= port.target_port <= 65535:
            raise Invalid(f"EndpointSpec: target port {port.target_port} is out of range: use 1 to 65535")
        if not 0 <= port.published_port <= 65535:
            raise Invalid(f"EndpointSpec: published port {port.published_port} is out of range: use 1 to 65535")
        if endpoint.mode == "dnsrr" and port.publish_mode == "ingress":
            raise Invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
        if port.published_port:
            if (port.protocol, port.published_port) in published:
                raise Invalid(
                    f"EndpointSpec: duplicate published ports provided: {port.published_port}/{port.protocol} is given "
                    "twice"
                )
            published.add((port.protocol, port.published_port))


def _labels(spec: ServiceSpec, restricted: Openings, wanted: Iterable[PortConfig]) -> None:
    """A label for a port that is not there would restrict nothing: it is a slip."""
    numbers = {
        (protocol, p.published_port) for p in wanted if p.publish_mode == "ingress" for protocol in ("", p.protocol)
    }
    for protocol, number in restricted:
        if (protocol, number) not in numbers:
            name = f"{number}/{protocol}" if protocol else f"{number}"
            raise Invalid(
                f"invalid label {PUBLISH_LABEL}{name}: service {spec.name} does not publish port {name} in ingress "
                "mode: publish it, or remove the label"
            )


def _are_free(view: View, wanted: list[PortConfig], restricted: Openings, current: Service | None) -> None:
    """An ingress port belongs to one service at each address; host ports of two services the scheduler keeps apart."""
    if not wanted:
        return
    for other in view.all(Service):
        if current is not None and other.id == current.id:
            continue
        taken = _taken(view, other)
        for port in wanted:
            modes = taken.get((port.protocol, port.published_port), set())
            if port.publish_mode == "host":
                modes = modes - {"host"}
            elif "ingress" in modes:
                here, there = opening(restricted, port), opening(openings_as_stored(other), port)
                if here is not None and there is not None and here.is_apart(there):
                    modes = modes - {"ingress"}
            if modes:
                how = "an ingress port" if "ingress" in modes else "a host-published port"
                raise Invalid(
                    f"port '{port.published_port}' is already in use by service '{other.spec.name}' ({other.id}) as "
                    f"{how}"
                )


def _taken(view: View, service: Service) -> Mapping[Number, set[str]]:
    """What the service publishes and in which modes; also what a node chose for one of its tasks."""
    found: dict[Number, set[str]] = {}
    asked = service.spec.endpoint_spec.ports
    on_nodes: list[PortConfig] = []
    if any(port.publish_mode == "host" and not port.published_port for port in asked):
        on_nodes = [p for task in view.tasks_of(service.id) if not task.status.state.dead for p in task.status.ports]
    for port in (*asked, *service.ports, *on_nodes):
        if port.published_port:
            found.setdefault((port.protocol, port.published_port), set()).add(port.publish_mode)
    return found


# --- what is granted -------------------------------------------------------------------------------------------------


def grant(tx: Transaction, service: Service) -> tuple[tuple[PortConfig, ...], tuple[Door, ...]]:
    """The service's ports with real numbers, and their doors. Raises `Exhausted`.

    A number once chosen stays while its port is asked for; so does a door. A host port without a number is its node's
    to choose.
    """
    ports = _with_kept_numbers(service.spec.endpoint_spec.ports, service)
    if any(_is_open(port) for port in ports):
        ports = _with_new_numbers(tx, ports)
    if ports == service.ports:
        return service.ports, service.doors
    return ports, _doors(tx, service, ports)


def _with_kept_numbers(asked: Iterable[PortConfig], service: Service | None) -> tuple[PortConfig, ...]:
    """Those without a number get what the service has for the same name, target, protocol and mode."""
    given = tuple(asked)
    explicit = {(port.protocol, port.published_port) for port in given}
    kept: dict[PortConfig, list[PortConfig]] = {}
    for port in service.ports if service is not None else ():
        if port.published_port and (port.protocol, port.published_port) not in explicit:
            kept.setdefault(_without_number(port), []).append(port)
    return tuple(kept[port].pop(0) if _is_open(port) and kept.get(port) else port for port in given)


def _with_new_numbers(tx: Transaction, ports: tuple[PortConfig, ...]) -> tuple[PortConfig, ...]:
    used: set[Number] = {(port.protocol, port.published_port) for port in ports}
    for other in tx.all(Service):
        used |= _taken(tx, other).keys()
    granted = []
    for port in ports:
        if _is_open(port):
            number = _next(tx, port.protocol, used)
            used.add((port.protocol, number))
            port = msgspec.structs.replace(port, published_port=number)
        granted.append(port)
    return tuple(granted)


def _is_open(port: PortConfig) -> bool:
    """Asked for without a number, and the number is the allocator's to choose."""
    return port.published_port == 0 and port.publish_mode == "ingress"


def _without_number(port: PortConfig) -> PortConfig:
    return msgspec.structs.replace(port, published_port=0)


def _next(tx: Transaction, protocol: str, used: set[Number]) -> int:
    cursor = tx.get(Cursor, "port") or Cursor(id="port", number=DYNAMIC_PORTS.start - 1)
    count = len(DYNAMIC_PORTS)
    for step in range(1, count + 1):
        number = DYNAMIC_PORTS[(cursor.number - DYNAMIC_PORTS.start + step) % count]
        if (protocol, number) not in used:
            tx.put(msgspec.structs.replace(cursor, number=number))
            return number
    raise Exhausted(f"no free {protocol} port in {DYNAMIC_PORTS.start}-{DYNAMIC_PORTS.stop - 1} to publish")


def _doors(tx: Transaction, service: Service, ports: Iterable[PortConfig]) -> tuple[Door, ...]:
    """Numbers inside the mesh, where they are not the published ones."""
    through_mesh = [port for port in ports if port.publish_mode == "ingress"]
    had = {
        (port.protocol, port.published_port): number_inside(port, service.doors)
        for port in service.ports
        if port.publish_mode == "ingress"
    }
    taken = {
        (port.protocol, number_inside(port, other.doors))
        for other in tx.all(Service)
        if other.id != service.id
        for port in other.ports
        if port.publish_mode == "ingress"
    }
    taken |= {(protocol, number) for (protocol, _), number in had.items()}
    found = []
    for port in through_mesh:
        number = had.get((port.protocol, port.published_port))
        if number is None:
            candidates = (port.published_port, *DOORS)
            number = next((n for n in candidates if (port.protocol, n) not in taken), None)
            if number is None:
                raise Exhausted(f"too many services publish one {port.protocol} port at different addresses")
            taken.add((port.protocol, number))
        if number != port.published_port:
            found.append(Door(protocol=port.protocol, port=port.published_port, number=number))
    return tuple(found)


def serves(task: Task, service: Service, port: PortConfig) -> bool:
    """Whether `task` answers `port` of its service: one made before the port was published does not."""
    return any(
        (mine.protocol, mine.published_port, mine.publish_mode)
        == (port.protocol, port.published_port, port.publish_mode)
        and number_inside(mine, task.doors) == number_inside(port, service.doors)
        for mine in task.ports
    )
