"""Witnesses from outside: what clients get, what tools we did not write see in the kernel, what the CLIs say.

Nothing here imports the product but the lab's handles on machines.
"""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import Machine
from hivemesh.lab.node import Node

IMAGE = "localhost/whoami"
SERVICE, PORT = "web_ingress_lb", 8090
CREATE = ("service", "create", "--name", SERVICE, "--replicas", "2", "--publish", f"{PORT}:80", IMAGE)
"""The classic command line, the same words for both CLIs."""
HIVEMESH = str(Path(sys.executable).with_name("hivemesh"))
TABLE = "hivemesh"

T = TypeVar("T")


def eventually(look: Callable[[], T], timeout: float = 20.0) -> T:
    """The first result of `look` that is not a failed assertion; the last failure when time is up."""
    until = time.monotonic() + timeout
    while True:
        try:
            return look()
        except AssertionError:
            if time.monotonic() > until:
                raise
        time.sleep(0.02)


# -- command lines ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """What a command did."""

    code: int
    out: str
    err: str


def run_cli(node: Node, *words: str, timeout: float = 60) -> Said:
    """`docker …` or `hivemesh …` against a node's socket."""
    program = HIVEMESH if words[0] == "hivemesh" else words[0]
    done = node.exec(program, *words[1:], check=False, timeout=timeout)
    return Said(done.returncode, done.stdout, done.stderr)


def cli(node: Node, *words: str, timeout: float = 60) -> str:
    """Its output; the exit code must be 0."""
    said = run_cli(node, *words, timeout=timeout)
    assert said.code == 0, f"{' '.join(words)}: {said}"
    return said.out


# -- what the API says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskSeen:
    """A task, as `GET /tasks` shows it. `host` is the host name its container goes by."""

    id: str
    node: str
    state: str
    desired: str
    addresses: frozenset[str]
    host: str


def tasks_of(lab: Lab, service: str = "") -> list[TaskSeen]:
    """All tasks, of one service or of all."""
    first = lab.nodes[0]
    names = {node["ID"]: node["Description"]["Hostname"] for node in first.api("GET", "/nodes")}
    wanted = first.api("GET", f"/services/{service}")["ID"] if service else ""
    return [
        TaskSeen(
            id=task["ID"],
            node=names.get(task.get("NodeID", ""), ""),
            state=task["Status"]["State"],
            desired=task["DesiredState"],
            addresses=frozenset(
                address.partition("/")[0] for at in task.get("NetworksAttachments") or () for address in at["Addresses"]
            ),
            host=task["Status"].get("ContainerStatus", {}).get("ContainerID", "")[:12],
        )
        for task in first.api("GET", "/tasks")
        if not wanted or task["ServiceID"] == wanted
    ]


def await_tasks(lab: Lab, service: str, count: int, timeout: float = 30) -> list[TaskSeen]:
    """Until exactly `count` tasks run and every other one has ended; the running ones."""

    def look() -> list[TaskSeen]:
        seen = tasks_of(lab, service)
        running = [task for task in seen if task.state == task.desired == "running"]
        alive = [task for task in seen if task.state not in ("shutdown", "failed", "complete", "rejected", "orphaned")]
        assert len(running) == len(alive) == count, seen
        return running

    return eventually(look, timeout)


def await_served(lab: Lab, count: int, port: int = PORT, timeout: float = 20, protocol: str = "tcp") -> None:
    """Until every node's kernel has `count` backends for a port, in both families."""

    def look() -> None:
        for node in lab.nodes:
            found = backends(node)
            for family in (4, 6):
                assert len(found.get((protocol, port, family), ())) == count, (node.name, found)

    eventually(look, timeout)


def start_service(lab: Lab, *options: str, name: str = SERVICE, replicas: int = 2, port: int = PORT) -> list[TaskSeen]:
    """A service of the demo image, published on TCP `port` (0: not at all), served by every node."""
    publish = ("--publish", f"{port}:80") if port else ()
    cli(lab.nodes[0], "hivemesh", "service", "create", "--detach", "--name", name, "--replicas", str(replicas),
        "--restart-delay", "100ms", "--stop-grace-period", "1s", *publish, *options, IMAGE)  # fmt: skip
    running = await_tasks(lab, name, replicas)
    if port:
        await_served(lab, replicas, port)
    return running


def drift(node: Node) -> list[str]:
    """How the node's kernel differs from its plan, in the node's own words."""
    found: list[str] = node.api("GET", "/hivemesh/drift")["Differences"]
    return found


# -- clients ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply of the demo image: who answered, and whom it saw."""

    host: str
    addresses: tuple[str, ...]
    client: str
    port: int


def parse_answer(text: str) -> Answer:
    facts: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        facts.setdefault(name, []).append(value)
    address, _, port = facts["RemoteAddr"][0].rpartition(":")
    return Answer(facts["Hostname"][0], tuple(facts.get("IP", ())), address.strip("[]"), int(port))


def curl(asker: Machine, host: str, port: int = PORT, count: int = 1) -> list[Answer]:
    """The answers to `count` requests, each on a connection of its own."""
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    done = asker.exec(
        "curl", "--silent", "--show-error", "--globoff", "--max-time", "3", "--header", "Connection: close",
        "--write-out", "\n%{num_connects} connection\n", *[url] * count, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{asker.name}$ curl {url}: {done.stderr}"
    replies = done.stdout.split("1 connection\n")
    assert replies.pop() == ""
    assert len(replies) == count
    return [parse_answer(reply) for reply in replies]


_UDP = """
import json, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(count):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(2)
        asker.connect((host, port))
        asker.send(b"ping %d" % number)
        reply = asker.recv(65535)
        assert reply.endswith(b"ping %d" % number), reply
        print(json.dumps([reply.decode(), asker.getsockname()[1]]))
"""


def udp(asker: Machine, host: str, port: int, count: int = 1) -> list[Answer]:
    """The answers to `count` datagrams, each from a socket of its own that accepts the asked address only."""
    done = asker.exec(sys.executable, "-S", "-c", _UDP, host, str(port), str(count), check=False)
    assert done.returncode == 0, f"{asker.name}: a datagram to {host} port {port}: {done.stderr}"
    return [parse_answer(json.loads(line)[0]) for line in done.stdout.splitlines()]


def places(lab: Lab) -> Iterator[tuple[Machine, str, str]]:
    """Who asks, the address asked, and the client address that a task must see."""
    for node in lab.nodes:
        for own, client, loopback in (
            (node.spec.v4.ip, lab.client.spec.v4.ip, "127.0.0.1"),
            (node.spec.v6.ip, lab.client.spec.v6.ip, "::1"),
        ):
            yield lab.client, str(own), str(client)
            yield node, str(own), str(own)
            yield node, loopback, str(own)
    # one node asks another
    yield lab.nodes[0], str(lab.nodes[-1].spec.v4.ip), str(lab.nodes[0].spec.v4.ip)
    yield lab.nodes[0], str(lab.nodes[-1].spec.v6.ip), str(lab.nodes[0].spec.v6.ip)


@dataclass(frozen=True, slots=True)
class Try:
    """One connection of a trickle. Times are of the monotonic clock; `host` is empty when `error` is not."""

    began: float
    ended: float
    target: str
    host: str
    error: str


_TRICKLE = """
import select, socket, sys, time
port, pause, targets = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
number = 0
while not select.select([sys.stdin], [], [], pause)[0]:
    target = targets[number % len(targets)]
    number += 1
    began, host, error = time.monotonic(), "", ""
    try:
        with socket.create_connection((target, port), timeout=3) as connection:
            connection.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
            reply = b""
            while piece := connection.recv(65536):
                reply += piece
        lines = dict(line.partition(": ")[::2] for line in reply.decode().splitlines())
        host = lines.get("Hostname", "")
        error = "" if host else "an empty answer"
    except OSError as failure:
        error = type(failure).__name__
    print(began, time.monotonic(), target, host or "-", error or "-", flush=True)
"""


@dataclass(slots=True)
class Trickle:
    """New connections to every node in both families, one after the other, while a `with` block runs."""

    asker: Machine
    targets: Sequence[str]
    port: int = PORT
    pause: float = 0.004
    tries: list[Try] = field(default_factory=list)
    _process: "subprocess.Popen[str] | None" = None

    @classmethod
    def to_all(cls, lab: Lab, port: int = PORT) -> "Trickle":
        return cls(lab.client, [str(ip) for node in lab.nodes for ip in (node.spec.v4.ip, node.spec.v6.ip)], port)

    def __enter__(self) -> "Trickle":
        command = [sys.executable, "-S", "-c", _TRICKLE, str(self.port), str(self.pause), *self.targets]
        self._process = subprocess.Popen(
            self.asker.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process is not None
        out, _ = self._process.communicate(timeout=10)
        for line in out.splitlines():
            began, ended, target, host, failure = line.split()
            self.tries.append(Try(float(began), float(ended), target, host.strip("-"), failure.strip("-")))

    @property
    def failed(self) -> list[Try]:
        return [attempt for attempt in self.tries if attempt.error]

    def hosts(self, since: float = 0.0) -> Counter[str]:
        """Who answered connections that began after `since`."""
        return Counter(attempt.host for attempt in self.tries if attempt.began > since and not attempt.error)


# -- kernel -----------------------------------------------------------------------------------------------------------


def inside(node: Machine, namespace: str, *command: str, check: bool = True) -> str:
    """Run a tool in a namespace of a node ("" is the node itself)."""
    where = ["ip", "netns", "exec", namespace] if namespace else []
    return node.exec(*where, *command, check=check).stdout


def as_json(node: Machine, namespace: str, *command: str) -> Any:
    text = inside(node, namespace, *command)
    return json.loads(text) if text.strip() else []


def resolver_of(node: Node) -> int:
    """The process id of the node's resolver."""
    (found,) = [p.pid for p in node.processes() if p.runs("hivemesh-resolver") or "hivemesh.dns.process" in p.arguments]
    return found


def namespaces(node: Machine) -> list[str]:
    return sorted(line.split()[0] for line in node.exec("ip", "netns").stdout.splitlines())


def overlay_of(node: Machine, network: str) -> str:
    return f"1-{network[:10]}"


def ingress_id(lab: Lab) -> str:
    networks = lab.nodes[0].api("GET", "/networks")
    found: str = next(network["Id"] for network in networks if network["Ingress"])
    return found


_LOOK = """
for space in "" $(ip netns | cut -d' ' -f1); do
    in="${space:+ip netns exec $space}"
    echo "== $space"
    for command in "ip -j -d link" "ip -j addr" "ip -j route show table all proto 117" \
            "ip -j -6 route show table all proto 117" "ip -j rule" "ip -j -6 rule" "ip -j neigh show nud permanent" \
            "bridge -j fdb show" "nft -j -s list ruleset"; do
        $in $command | tr -d '\\n'; echo
    done
done
"""


def kernel(node: Machine) -> dict[str, Any]:
    """All of the node's kernel that is ours to shape, by namespace ("" is the node itself).

    Numbers the kernel gives out (indexes, handles, random MACs) and what it learns by itself are left out, so two looks
    are equal when nothing changed or when something was removed and made again.
    """
    found = {}
    for part in node.exec("bash", "-c", _LOOK).stdout.split("== ")[1:]:
        space, *lines = part.split("\n")
        parsed = [json.loads(line) if line.strip() else [] for line in lines[:9]]
        links, addresses, route4, route6, rule4, rule6, neighbors, fdb, nft = parsed
        found[space] = {
            "links": {link["ifname"]: _link(link) for link in links},
            "addresses": sorted(
                f"{link['ifname']} {one['local']}/{one['prefixlen']}"
                for link in addresses
                for one in link["addr_info"]
                if one["scope"] != "link"
            ),
            "routes": sorted(json.dumps(_plain(route), sort_keys=True) for route in route4 + route6),
            "rules": sorted(json.dumps(rule, sort_keys=True) for rule in rule4 + rule6),
            "neighbors": sorted(f"{n['dev']} {n['dst']} {n['lladdr']}" for n in neighbors),
            "fdb": sorted(f"{e['ifname']} {e['mac']} {e['dst']}" for e in fdb if "dst" in e),
            "nft": _ruleset(nft["nftables"]),
        }
    return found


def _link(link: dict[str, Any]) -> dict[str, Any]:
    info = link.get("linkinfo", {})
    data = info.get("info_data", {})
    return {
        "kind": info.get("info_kind", ""),
        "up": "UP" in link["flags"],
        "mtu": link["mtu"],
        "master": link.get("master", ""),
        "alias": link.get("ifalias", ""),
        "mac": link["address"] if str(link.get("address", "")).startswith("02:42:") else "",
        **{key: data[key] for key in ("id", "learning", "port", "local", "proxy") if key in data},
    }


def _plain(route: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in route.items() if key not in ("flags", "pref")}


def _ruleset(objects: Iterable[dict[str, Any]]) -> list[str]:
    """Rules keep their order in their chain; tables, chains and elements have none."""
    places: Counter[tuple[str, ...]] = Counter()
    lines = []
    for outer in objects:
        for kind, value in outer.items():
            if kind == "metainfo":
                continue
            value = {key: inner for key, inner in value.items() if key != "handle"}
            if kind == "rule":
                chain = (value["family"], value["table"], value["chain"])
                value["place"] = places[chain]
                places[chain] += 1
            if "elem" in value:
                value["elem"] = sorted(json.dumps(element, sort_keys=True) for element in value["elem"])
            lines.append(json.dumps({kind: value}, sort_keys=True))
    return sorted(lines)


def kernels(lab: Lab) -> dict[str, Any]:
    return {node.name: kernel(node) for node in lab.nodes}


_IDENTITIES = """
for space in "" $(ip netns | cut -d' ' -f1); do
    in="${space:+ip netns exec $space}"
    echo "== $space $([ -z "$space" ] || stat --dereference --format %i /run/netns/$space)"
    $in ip -o link | cut -d' ' -f1,2
    $in nft -a -s list ruleset
done
"""


def identities(lab: Lab) -> dict[str, str]:
    """Numbers that tell whether anything was removed and made again: of namespaces, links, tables and rules."""
    return {node.name: node.exec("bash", "-c", _IDENTITIES).stdout for node in lab.nodes}


def backends(node: Machine) -> dict[tuple[str, int, int], list[str]]:
    """What `ingress_sbox` spreads each published port over: by protocol, port and family, in slot order."""
    text = inside(node, "ingress_sbox", "nft", "-n", "list", "table", "inet", TABLE, check=False)
    found: dict[tuple[str, int, int], list[tuple[int, str]]] = {}
    for protocol, port, slot, address in re.findall(r"(\w+) \. (\d+) \. 0x([0-9a-f]+) : ([0-9a-f.:]*[0-9a-f:])", text):
        name = {"6": "tcp", "17": "udp"}.get(protocol, protocol)
        key = (name, int(port), ip_address(address).version)
        found.setdefault(key, []).append((int(slot, 16), address))
    return {key: [address for _, address in sorted(slots)] for key, slots in found.items()}


def published(node: Machine) -> set[tuple[str, int]]:
    """The ports the node's own namespace hands to `ingress_sbox`."""
    text = inside(node, "", "nft", "-n", "list", "set", "inet", TABLE, "published", check=False)
    names = {"6": "tcp", "17": "udp"}
    return {(names.get(number, number), int(port)) for number, port in re.findall(r"(\w+) \. (\d+)", text)}


def containers(node: Machine) -> dict[str, int]:
    """Podman's own words: id and process of every container it has, also of ended ones (0)."""
    listed = node.exec("podman", "ps", "--all", "--no-trunc", "--format", "{{.ID}} {{.Pid}}").stdout
    return {line.split()[0]: int(line.split()[1]) for line in listed.splitlines()}


@contextmanager
def foreign_table(node: Machine, *namespaces: str) -> Iterator[Callable[[], dict[str, str]]]:
    """A table of somebody else in each namespace; calling what it yields lists them."""
    for space in namespaces:
        for line in ("add table inet other", "add chain inet other c { type filter hook input priority 5; }",
                     'add rule inet other c tcp dport 22 accept comment "not yours"'):  # fmt: skip
            inside(node, space, "nft", line)
    try:
        yield lambda: {space: inside(node, space, "nft", "list", "table", "inet", "other") for space in namespaces}
    finally:
        for space in namespaces:
            inside(node, space, "nft", "delete table inet other", check=False)
