"""Three nodes and a client on one underlay, each a process with its own network and mount namespace.

The parent sends each node functions to run (`Node.call`): in the node itself or, by name, in one of its sandboxes. What
the nodes hold comes from our plans; that packets arrive is seen by ordinary sockets.
"""

import contextlib
import ctypes
import ipaddress
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hivemesh.dataplane.plan import (
    GatewayLease,
    HostFacts,
    HostPort,
    plan_host,
    plan_ingress,
    plan_overlay,
    plan_sandbox,
)
from hivemesh.kernel.api import NamespacePlan
from hivemesh.model.addr import MAC, VNI, Address, Interface
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import Balance, Door, PortConfig, TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import Backend, NetworkItem, PeerItem, PublishItem

V4, V6 = "198.51.100", "fd00:5e::"
CLIENT = (f"{V4}.100", f"{V6}100")
INGRESS = NetworkID("ingress0000000000000000ng")
_libc = ctypes.CDLL(None, use_errno=True)


# --- inside a node's process ---------------------------------------------------------------------------------------


def inside(namespace: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run `function` in a thread that entered the namespace for good."""
    result: list[Any] = []

    def run() -> None:
        try:
            if namespace:
                handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
                if _libc.setns(handle, 0x40000000):
                    raise OSError(ctypes.get_errno(), "setns")
                os.close(handle)
            result.append((True, function(*args)))
        except Exception as error:
            result.append((False, f"{error!r}\n{traceback.format_exc()}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    ok, value = result[0]
    if not ok:
        raise RuntimeError(value)
    return value


def serve(name: str, protocol: str, port: int, address: str = "::", only6: bool = False) -> None:
    """Answer each connection or datagram with our name and the client's address and port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    server = socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only6))
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen(64)
    listening.setdefault(name, []).append(server)

    def words(peer: Any) -> bytes:
        return f"{name} {peer[0].removeprefix('::ffff:')} {peer[1]}".encode()

    def talk(connection: socket.socket, peer: Any) -> None:
        with connection:
            while data := connection.recv(2000):
                if data.startswith(b"give "):
                    connection.sendall(bytes(int(data[5:])))
                    continue
                if data.startswith(b"take "):
                    take(connection, int(data[5:]))
                connection.sendall(words(peer))

    def streams() -> None:
        while True:
            try:
                connection, peer = server.accept()
            except OSError:  # hushed
                return
            threading.Thread(target=talk, args=(connection, peer), daemon=True).start()

    def datagrams() -> None:
        while True:
            try:
                _, peer = server.recvfrom(2000)
                if peer is None:  # hushed
                    return
                server.sendto(words(peer), peer)
            except OSError:
                return

    threading.Thread(target=streams if protocol == "tcp" else datagrams, daemon=True).start()


listening: dict[str, list[socket.socket]] = {}


def hush(name: str) -> None:
    """Stop the servers of that name: a namespace lives as long as anybody in it."""
    for server in listening.pop(name):
        with contextlib.suppress(OSError):  # UDP says that it is not connected, and wakes its reader all the same
            server.shutdown(socket.SHUT_RDWR)
        server.close()


@dataclass(frozen=True)
class Reply:
    """Who answered, and whom it saw."""

    server: str
    seen: str
    port: int = 0


def take(connection: socket.socket, size: int) -> None:
    connection.sendall(b"ok")
    while size > 0:
        size -= len(connection.recv(1 << 16))


def bulk(host: str, port: int, size: int) -> tuple[int, Reply]:
    """Download `size` bytes, then upload as many; how many came, and the server's last word."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect((host, port))
        sock.sendall(f"give {size}".encode())
        came = 0
        while came < size:
            came += len(sock.recv(1 << 16))
        sock.sendall(f"take {size}".encode())
        sock.recv(2)
        sock.sendall(bytes(size))
        server, seen, source = sock.recv(2000).decode().split()
        return came, Reply(server, seen, int(source))


def big_datagram(host: str, port: int, size: int) -> int:
    """Send a datagram until it is answered, at most five times; which one was (the first may only learn the MTU)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.connect((host, port))
        for attempt in range(1, 6):
            try:
                sock.send(bytes(size))
                sock.recv(2000)
                return attempt
            except OSError:
                continue
    return 0


kept: list[socket.socket] = []


def ask(protocol: str, host: str, port: int, *, times: int = 1, source: tuple[str, int] | None = None,
        keep: bool = False, timeout: float = 3.0) -> list[Reply | str]:  # fmt: skip
    """One new connection (or socket) for each question; an error is told by its name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    replies: list[Reply | str] = []
    for _ in range(times):
        sock = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        sock.settimeout(timeout)
        try:
            sock.connect((host, port))
            replies.append(question(sock))
        except OSError as error:
            replies.append(type(error).__name__)
        if keep:
            kept.append(sock)
        else:
            sock.close()
    return replies


def peer_of(host: str, port: int, as_six: bool = False) -> tuple[str, str]:
    """Who answers a TCP connection, and whom its socket says it is connected to; `as_six`: an IPv4 host by IPv6."""
    host = f"::ffff:{host}" if as_six else host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect((host, port))
        return question(sock).server, sock.getpeername()[0]


def ask_unconnected(host: str, port: int, times: int = 1, as_six: bool = False) -> list[tuple[str, str]]:
    """Datagrams from one UDP socket that never connects: who answered each, and the answer's source."""
    host = f"::ffff:{host}" if as_six else host
    sock = strollers.get(host)
    if sock is None:
        sock = strollers[host] = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(3)
    found = []
    for _ in range(times):
        try:
            sock.sendto(b"?", (host, port))
            said, peer = sock.recvfrom(2000)
            found.append((said.decode().split()[0], peer[0]))
        except OSError as error:
            found.append((type(error).__name__, ""))
    return found


strollers: dict[str, socket.socket] = {}


def ask_each(protocol: str, host: str, port: int, sources: Iterable[str]) -> list[Reply | str]:
    """One new connection from each address."""
    return [ask(protocol, host, port, source=(source, 0))[0] for source in sources]


def question(sock: socket.socket) -> Reply:
    sock.send(b"?")
    server, seen, port = sock.recv(2000).decode().split()
    return Reply(server, seen, int(port))


def ask_again() -> list[Reply]:
    """On all sockets that `ask` kept open; they are closed after."""
    replies = [question(sock) for sock in kept]
    while kept:
        kept.pop().close()
    return replies


def outcomes_again() -> list[str]:
    """Of one more question on each socket that `ask` kept open: the server's name, or the error's. They are closed."""
    found = []
    while kept:
        with kept.pop() as sock:
            try:
                found.append(question(sock).server)
            except OSError as error:
                found.append(type(error).__name__)
    return found


def answer_names(protocol: str, host: str, port: int, address: str) -> None:
    """A name server that answers every question with one address; other servers may share its port."""

    def answer(query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        record = b"\xc0\x0c" + bytes([0, 1, 0, 1, 0, 0, 0, 5, 0, 4]) + ipaddress.ip_address(address).packed
        return query[:2] + bytes([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]) + query[12:end] + record

    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    if protocol == "tcp":
        server.listen(8)

    def datagrams() -> None:
        while True:
            query, peer = server.recvfrom(2000)
            server.sendto(answer(query), peer)

    def streams() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                said = answer(connection.recv(2000)[2:])
                connection.sendall(len(said).to_bytes(2, "big") + said)

    threading.Thread(target=streams if protocol == "tcp" else datagrams, daemon=True).start()


def forget(namespace: str, addresses: Iterable[Address]) -> int:
    """As the agent does when endpoints left."""
    from hivemesh.kernel import conntrack

    return conntrack.forget(namespace, every=set(addresses))


def run(*argv: str, text: str | None = None) -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr}")
    return done.stdout


def send_tunnelled(target: str) -> None:
    """One frame in VXLAN, for nobody: the ingress network's number, made-up MACs, a made-up protocol."""
    frame = bytes.fromhex("024200000001 024200000002 88b5") + bytes(46)
    packet = bytes([8, 0, 0, 0]) + (4096).to_bytes(3, "big") + b"\0" + frame
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")  # broadcasts have no route
        sock.sendto(packet, (target, 4789))


def tunnelled() -> int:
    """How many frames have come out of the tunnel, into this overlay's namespace."""
    (link,) = json.loads(run("ip", "-s", "-j", "link", "show", "vxlan0"))
    return int(link["stats64"]["rx"]["packets"])


def apply(plans: Iterable[NamespacePlan]) -> list[str]:
    from hivemesh.dataplane.apply import Applier

    global _applier
    if _applier is None:
        _applier = Applier()
    failed: list[str] = []
    for plan in plans:
        failed += _applier.ensure(plan).failed
    return failed


def balance_sockets(pins: str = "") -> str:
    """From now on `apply` leads sockets to backends too, with pins or until this process ends; why not, if not."""
    from pathlib import Path

    from hivemesh.dataplane.apply import Applier
    from hivemesh.kernel.linux import Linux
    from hivemesh.kernel.sockethooks import SocketHooks

    global _applier, _hooks
    _hooks = SocketHooks(Path(pins) if pins else None)
    _applier = Applier(Linux(_hooks))
    lack: str = _hooks.lack()
    return lack


def led(address: str) -> int:
    """How many sockets were led from there to a backend, as the maps say, which keep that across changes of none."""
    return sum(count for _, vip, count in _hooks.counted() if str(vip) == address)


def let_go_of_sockets() -> None:
    """As a daemon that dies: what is pinned goes on."""
    _hooks.close()


def leave_sockets_alone() -> None:
    """As a node that leaves its swarm."""
    _hooks.discard()


def end_connections(namespace: str, addresses: Iterable[Address]) -> int:
    """As the agent does when endpoints left."""
    from hivemesh.kernel import sockdiag

    return sockdiag.end(namespace, set(addresses))


def remove(namespace: str) -> None:
    assert _applier is not None
    _applier.remove(namespace)


def doubt(namespaces: Iterable[str]) -> None:
    """As the agent does when the kernel says that somebody else touched a namespace."""
    assert _applier is not None
    for namespace in namespaces:
        _applier.forget(namespace)


def differences(plans: Iterable[NamespacePlan]) -> list[str]:
    assert _applier is not None
    return [str(d) for plan in plans for d in _applier.differences(plan)]


def counted() -> dict[str, dict[tuple[str, ...], int]]:
    """What this node's `ingress_sbox` has counted, by family of metrics and labels; of the view of `see`."""
    from hivemesh.metrics.reading import read

    found: dict[str, dict[tuple[str, ...], int]] = {}
    for family, labels, _, value in read(_seen[0], _seen[1], None):
        sums = found.setdefault(family, {})
        sums[labels] = sums.get(labels, 0) + value
    return found


def see(view: Any, plans: Iterable[NamespacePlan]) -> None:
    """What `counted` and `flows` go by."""
    from hivemesh.cnm.node import parts_of

    global _seen
    _seen = (parts_of(view), {plan.namespace: plan for plan in plans})


def listen_for_flows() -> None:
    """From now on, in `ingress_sbox`."""
    from hivemesh.kernel.flows import FlowSocket

    global _flows
    _flows = FlowSocket("ingress_sbox")


def flows(most: int) -> tuple[list[Any], int]:
    """With names, and how many were lost; ends the listening."""
    from hivemesh.metrics.naming import Names

    names = Names(_seen[0], "here")
    plan = _seen[1]["ingress_sbox"]
    found = [names.flow("ingress_sbox", plan, tracked, 0.0) for tracked in _flows.read(most)]
    lost = _flows.lost()
    _flows.close()
    return [flow for flow in found if flow is not None], lost


def listen_past_the_mesh() -> None:
    """From now on, on the host: to what is led elsewhere than into `ingress_sbox`."""
    from hivemesh.kernel.flows import FlowSocket

    global _flows
    addresses = {a.address.ip for a in _seen[1]["ingress_sbox"].addresses if a.link == "eth1"}
    v4, v6 = sorted(addresses, key=lambda a: a.version)
    _flows = FlowSocket("", (v4, v6))


def heard() -> list[tuple[str, int, str, int]]:
    """What was asked for, and who answers; ends the listening."""
    found = _flows.read(1000)
    _flows.close()
    return [(str(t.destination), t.destination_port, str(t.answers), t.answers_port) for t in found]


_seen: Any = None
_flows: Any = None


def traced(plans: Iterable[NamespacePlan], view: Any, question: Any, vtep: str) -> Any:
    """A trace that begins at this node; the others' part is asked of the parent (`Node.ask`)."""
    import asyncio

    from hivemesh.cnm.node import parts_of
    from hivemesh.trace import tracer

    async def elsewhere(there: Address, examination: Any) -> Any:
        return ask_parent(str(there), examination)

    own = ipaddress.ip_address(vtep)
    return asyncio.run(tracer.trace(_here(plans, vtep), parts_of(view), question, own, elsewhere))


def examined(plans: Iterable[NamespacePlan], examination: Any, vtep: str) -> Any:
    """This node's part of a trace that begins elsewhere."""
    from hivemesh.trace import tracer

    return tracer.examine(_here(plans, vtep), examination)


def probed(namespace: str, address: str, port: int, count: int, protocol: Any = "tcp") -> list[tuple[str, str]]:
    """Probes as a trace sends them, from a sandbox: how each was answered there, and from which address."""
    from hivemesh.kernel.probing import new_watch
    from hivemesh.trace.probes import Aim, Salvo
    from hivemesh.trace.watching import Watching

    watching, watch = Watching(), new_watch(protocol, 4789)
    aim = Aim(namespace=namespace, destination=ipaddress.ip_address(address), protocol=protocol, port=port, count=count)
    try:
        watching.look_out(watch, (namespace,))
        salvo = Salvo(watch, [aim], lambda: watching.seen(watch))
        salvo.fire()
        assert not salvo.shots[0].failed
        return sorted((s.kind, str(s.source)) for s in salvo.sightings if s.back and not s.out)
    finally:
        watching.close()


def _here(plans: Iterable[NamespacePlan], vtep: str) -> Any:
    from hivemesh.kernel.linux import Linux
    from hivemesh.trace.tracer import Here
    from hivemesh.trace.watching import Watching

    global _watching
    _watching = _watching or Watching()
    held = {plan.namespace: plan for plan in plans}
    return Here(node=f"n{vtep[-1]}", linux=Linux(_hooks), plans=held, watching=_watching)


def look_out_for(traces: int) -> None:
    """This node looks out for the probes of so many traces already; 0: for none."""
    from hivemesh.kernel.probing import new_watch
    from hivemesh.trace.watching import Watching

    global _watching
    _watching = _watching or Watching()
    _watching.close()
    for _ in range(traces):
        _watching.look_out(new_watch("tcp", 4789), ("",))


_watching: Any = None


def ask_parent(*question: Any) -> Any:
    """What `Node.ask` of the parent returns, which waits for this node meanwhile."""
    pickle.dump(("ask", question), _pipes[1])
    _pipes[1].flush()
    return pickle.load(_pipes[0])


_pipes: list[Any] = []


_applier: Any = None
_hooks: Any = None


def node_main() -> None:
    """Read calls from stdin, write results to stdout; ends with its parent."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    _pipes.extend((source, sink))
    sink.write(b"ready\n")
    sink.flush()
    while True:
        try:
            namespace, name, args, kwargs = pickle.load(source)
        except EOFError:
            return
        try:
            function = globals()[name]
            answer: Any = (True, inside(namespace, lambda f=function, a=args, k=kwargs: f(*a, **k)))
        except Exception as error:
            answer = (False, str(error))
        pickle.dump(answer, sink)
        sink.flush()


# --- in the test ---------------------------------------------------------------------------------------------------


_CHILD = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import mesh_rig; mesh_rig.node_main()"


class Node:
    """A process of its own that does what it is told."""

    def __init__(self, name: str) -> None:
        os.makedirs("/run/netns", exist_ok=True)
        self.name = name
        self.ask: Callable[..., Any] = lambda *question: None
        self.process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def call(self, function: Callable[..., Any], *args: Any, at: str = "", **kwargs: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((at, function.__name__, args, kwargs), self.process.stdin)
        self.process.stdin.flush()
        ok, value = pickle.load(self.process.stdout)
        while ok == "ask":
            pickle.dump(self.ask(*value), self.process.stdin)
            self.process.stdin.flush()
            ok, value = pickle.load(self.process.stdout)
        if not ok:
            raise AssertionError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def facts_of(number: int, *, six: bool = False) -> HostFacts:
    return HostFacts(
        vtep=ipaddress.ip_address(f"{V6}1{number}" if six else f"{V4}.1{number}"),
        vtep_mtu=1500,
        node_v4=ipaddress.IPv4Address(f"{V4}.1{number}"),
        node_v6=ipaddress.IPv6Address(f"{V6}1{number}"),
        gateway4=ipaddress.IPv4Interface("172.18.0.1/16"),
        gateway6=ipaddress.IPv6Interface("fd77:1::1/64"),
    )


def attachment(name: str, last: int) -> Attachment:
    addresses: tuple[Interface, ...] = (
        ipaddress.ip_interface(f"10.0.0.{last}/24"),
        ipaddress.ip_interface(f"fd10::{last:x}/64"),
    )
    return Attachment(
        endpoint_id=EndpointID(name.ljust(25, "0")),
        network_id=INGRESS,
        addresses=addresses,
        mac=MAC(f"02:42:0a:00:00:{last:02x}"),
    )


@dataclass
class Placed:
    """A task on a node: `last` is the last byte of its ingress addresses, 0: not on ingress."""

    name: str
    node: int
    last: int
    lease: GatewayLease
    ports: tuple[PortConfig, ...]
    doors: tuple[Door, ...] = ()

    @property
    def task(self) -> Task:
        return Task(
            id=TaskID(self.name.ljust(25, "0")),
            service_id=ServiceID("service"),
            service_name="web",
            slot=1,
            spec=TaskSpec(),
            ports=self.ports,
            doors=self.doors,
            attachments=(attachment(self.name, self.last),) if self.last else (),
        )

    @property
    def sandbox(self) -> str:
        return self.task.id[:12]

    @property
    def backend(self) -> Backend:
        return Backend(task=self.task.id, addresses=tuple(i.ip for i in self.task.attachments[0].addresses))


@dataclass
class Rig:
    """The cluster: change `tasks` and `serving`, then `apply`."""

    tasks: list[Placed]
    services: dict[str, tuple[PortConfig, ...]]
    host_ports: dict[int, tuple[HostPort, ...]] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    underlay: list[Node] = field(default_factory=list)
    six: bool = False  # tunnels over IPv6
    balance: Balance = field(default_factory=Balance)
    told: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)  # what a node hears of a service's ports

    @property
    def client(self) -> Node:
        return self.nodes[0]

    def start(self) -> None:
        """Nodes 1 to 3 and the client (0) on one bridge."""
        hub = Node("underlay")
        self.underlay.append(hub)
        hub.call(run, "ip", "link", "add", "ul0", "type", "bridge", "mcast_snooping", "0")
        hub.call(run, "ip", "link", "set", "ul0", "up")
        for number in range(4):
            node = self.nodes[number] = Node(f"n{number}" if number else "client")
            last = f"1{number}" if number else "100"
            hub.call(run, "ip", "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0",
                     "netns", str(node.pid))  # fmt: skip
            hub.call(run, "ip", "link", "set", f"p{number}", "master", "ul0", "up")
            node.call(run, "ip", "addr", "add", f"{V4}.{last}/24", "dev", "eth0")
            node.call(run, "ip", "addr", "add", f"{V6}{last}/64", "dev", "eth0", "nodad")
            node.call(run, "ip", "link", "set", "eth0", "up")

    def stop(self) -> None:
        for node in (*self.nodes.values(), *self.underlay):
            node.close()

    def publishes(self, number: int = 0) -> list[PublishItem]:
        """As node `number` is told, or one that is told nothing special."""
        found = []
        for name, ports in self.services.items():
            for port in ports:
                backends = tuple(t.backend for t in self.tasks if port in t.ports)
                found.append(
                    PublishItem(
                        service=ServiceID(name),
                        service_name=name,
                        protocol=port.protocol,
                        port=port.published_port,
                        backends=backends,
                        balance=self.balance,
                        **self.told.get((number, name), {}),
                    )
                )
        return found

    def network(self, number: int) -> NetworkItem:
        return NetworkItem(
            id=INGRESS,
            name="ingress",
            vni=VNI(4096),
            port=4789,
            subnets=(
                Subnet(prefix=ipaddress.ip_network("10.0.0.0/24"), gateway=ipaddress.ip_address("10.0.0.1")),
                Subnet(prefix=ipaddress.ip_network("fd10::/64"), gateway=ipaddress.ip_address("fd10::1")),
            ),
            ingress=True,
            own=attachment(f"node{number}", 10 + number),
        )

    def plans(self, number: int) -> list[NamespacePlan]:
        """Everything node `number` should hold."""
        facts = facts_of(number, six=self.six)
        network = self.network(number)
        ends = [(n, attachment(f"node{n}", 10 + n)) for n in (1, 2, 3)]
        ends += [(t.node, a) for t in self.tasks for a in t.task.attachments]
        peers = [
            PeerItem(
                network=INGRESS,
                endpoint=a.endpoint_id,
                addresses=a.addresses,
                mac=a.mac,
                vtep=facts_of(n, six=self.six).vtep,
            )
            for n, a in ends
        ]
        vteps = [facts_of(n, six=self.six).vtep for n in (1, 2, 3)]
        return [
            plan_host(facts, self.publishes(number), self.host_ports.get(number, ()), vteps, 4789),
            plan_overlay(network, facts, peers),
            plan_ingress(network, facts, self.publishes(number)),
            *(plan_sandbox(t.task, {INGRESS: network}, facts, t.lease) for t in self.tasks if t.node == number),
        ]

    def apply(self) -> None:
        for number in (1, 2, 3):
            failed = self.nodes[number].call(apply, self.plans(number))
            assert not failed, failed
