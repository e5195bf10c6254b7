"""The pages of `docs/packet-paths/`: what a lab's traces print for the classic ways, with ids and addresses made the
same in each run."""

import hashlib
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from names_asked import askers, network, service
from outside import cli

from hivemesh.lab.lab import Lab

FOLDER = Path(__file__).parents[2] / "docs" / "packet-paths"
ON = {"client": "n2", "caller": "n2", "near": "n2", "web": "n3", "six": "n3", "names": "n3", "door": "n3"}
"""Services, one task each, and where it runs. `client` and `caller` ask."""
SIX = "fd00:6::/64"


@dataclass(frozen=True)
class Page:
    """`commands` begin with the node they run on. `{client}` and `{caller}` are the tasks that ask,
    `{sandbox}` the first one's namespace, `{six}` a virtual address."""

    name: str
    title: str
    says: str
    commands: tuple[str, ...]


PAGES = (
    Page("published-port", "A published port, asked on a node that runs no task of it",
         """Service `web` publishes port 8080 and has one task, on n3. Somebody outside asks n1. n1 changes the
destination: the packet goes through `ingress_sbox` and the tunnel of the ingress network to the task, which sees the
client's own address. Its answer must come back the way the question came, so the task's sandbox sends it to the
`ingress_sbox` it came from, by a table of routes of its own.""",
         ("n1 hivemesh trace n1:8080", "n1 hivemesh trace n1:8080 --explain --no-probe")),
    Page("virtual-address", "A service's name and virtual address, from a task to another node",
         """`client` on n2 asks for `web` on n3, by its name. The sandbox's own resolver says the virtual address; rules
in the same sandbox put a task's address in its place, before the packet leaves. The overlay's namespace knows every
task's MAC address and the node it is on, so nothing is flooded and nothing is learnt.""",
         ("n1 hivemesh trace {client} web:80", "n1 hivemesh trace {client} web:80 --explain --no-probe")),
    Page("names-of-tasks", "All tasks of a service by name, without a balancer",
         """`tasks.web` is answered with the addresses of the tasks themselves: no virtual address, and no rule on the
way.""",
         ("n1 hivemesh trace {client} tasks.web:80", "n1 hivemesh trace {client} tasks.web:80 --explain --no-probe")),
    Page("dnsrr", "A service without a virtual address",
         """`names` was made with `--endpoint-mode dnsrr`: its name means its tasks' addresses, and the caller
chooses.""",
         ("n1 hivemesh trace {client} names:80", "n1 hivemesh trace {client} names:80 --explain --no-probe")),
    Page("same-node", "Two tasks on the same node",
         """`client` and `near` both run on n2. The bridge of the overlay hands the frame from one veth pair to the
other: the tunnel is not on the way.""",
         ("n1 hivemesh trace {client} near:80", "n1 hivemesh trace {client} near:80 --explain --no-probe")),
    Page("ipv6", "The same with IPv6",
         """`caller` and `six` are on a network made with `--ipv6`. Tunnels carry IPv6 inside as they carry IPv4:
neighbors are told, not asked for, so there is no NDP in the overlay either.""",
         ("n1 hivemesh trace {caller} [{six}]:80", "n1 hivemesh trace {caller} [{six}]:80 --explain --no-probe")),
    Page("host-mode-port", "A port in host mode",
         """`door` publishes port 8081 with `mode=host`: the node that runs the task leads the port straight into its
sandbox. No balancer, no ingress network, and no other node has that port.""",
         ("n1 hivemesh trace n3:8081", "n1 hivemesh trace n3:8081 --explain --no-probe")),
    Page("question-for-a-name", "A question for a name",
         """Every sandbox has a resolver at 127.0.0.11: rules lead port 53 there to a socket that the node's one
resolver has inside this sandbox. It answers what services, tasks and containers on the sandbox's networks are called,
and asks the machine's name servers for the rest.""",
         ("n2 ip netns exec {sandbox} dig +noall +answer @127.0.0.11 web",
          "n2 ip netns exec {sandbox} dig +noall +answer @127.0.0.11 tasks.web",
          "n1 hivemesh trace {client} web --no-probe")),
)  # fmt: skip


def made(lab: Lab) -> dict[str, str]:
    """The services of all pages; what stands for names in their commands."""
    network(lab, "front")
    network(lab, "wide", "--ipv6", "--subnet", "10.0.2.0/24", "--subnet", SIX)
    more = {
        "web": ("--publish", "8080:80"),
        "names": ("--endpoint-mode", "dnsrr"), "door": ("--publish", "mode=host,published=8081,target=80"),
    }  # fmt: skip
    for name, node in ON.items():
        net = ("--network", "wide" if name in ("six", "caller") else "front")
        options = (*net, *more.get(name, ()), "--constraint", f"node.hostname=={node}")
        service(lab, name, *options)
        askers(lab, name)
    (client,), (caller,) = askers(lab, "client"), askers(lab, "caller")
    vips = lab.nodes[0].api("GET", "/services/six")["Endpoint"]["VirtualIPs"]
    six = next(vip["Addr"].partition("/")[0] for vip in vips if ":" in vip["Addr"])
    return {"client": client.name, "caller": caller.name, "sandbox": client.task.id[:12], "six": six}


def pages(lab: Lab) -> dict[str, str]:
    """Each page by its name."""
    words = made(lab)
    same = Same(_ids(lab))
    found = {}
    for page in PAGES:
        shown = []
        for line in page.commands:
            node, _, command = line.format(**words).partition(" ")
            shown.append(f"{node}$ {command}\n{cli(lab.node(node), *command.split())}".rstrip())
        text = same.text("\n\n".join(shown))
        found[page.name] = f"# {page.title}\n\n{page.says}\n\n```\n{text}\n```\n"
    return found


def _ids(lab: Lab) -> dict[str, str]:
    """The ids of all objects, and what they are."""
    first = lab.nodes[0]
    found = {node["ID"]: f"node {node['Description']['Hostname']}" for node in first.api("GET", "/nodes")}
    services = {each["ID"]: each["Spec"]["Name"] for each in first.api("GET", "/services")}
    found |= {identifier: f"service {name}" for identifier, name in services.items()}
    found |= {each["Id"]: f"network {each['Name']}" for each in first.api("GET", "/networks")}
    found |= {each["ID"]: f"task {services[each['ServiceID']]}" for each in first.api("GET", "/tasks")}
    return found


class Same:
    """Ids are made of what they stand for. Addresses are numbered as they are first met, each in its own network, and
    MAC addresses follow them."""

    def __init__(self, ids: dict[str, str]) -> None:
        self._known: dict[str, str] = {}
        self._met: dict[str, int] = {}
        for identifier, what in ids.items():
            name = _made_up(what)
            self._known |= {identifier[:length]: name[:length] for length in (8, 10, 12, 25)}

    def text(self, text: str) -> str:
        return _TOOK.sub("0.4 ms", _VARIABLE.sub(self._instead, text))

    def _instead(self, found: "re.Match[str]") -> str:
        word = found[0]
        if word not in self._known:
            self._known[word] = self._make(word)
        return self._known[word]

    def _make(self, word: str) -> str:
        if word.startswith("02:42:"):
            last = bytes.fromhex(word.replace(":", ""))[2:]
            six = _MAC_OF_SIX.match(word)
            return word if six else _mac(self._instead_of(str(IPv4Address(last))))
        if word.startswith("veth"):
            return "veth" + _made_up(f"veth {self._number('veth')}")[:8]
        if ":" in word:
            network, host = divmod(int(IPv6Address(word)), 1 << 64)
            if not word.startswith("fd00:"):  # each swarm's own, drawn by lot
                network = (0xFD00 << 48) + self._order("fd", network)
            host = host if host < 2 else self._number(f"fd {network}") + 1
            return str(IPv6Address((network << 64) + host))
        if "." in word:
            prefix, _, last4 = word.rpartition(".")
            return word if last4 in ("0", "1") else f"{prefix}.{self._number(prefix) + 1}"
        return word

    def _instead_of(self, address: str) -> str:
        if address not in self._known:
            self._known[address] = self._make(address)
        return self._known[address]

    def _order(self, of: str, what: int) -> int:
        """The number of `what` among those of its kind, as they were met."""
        if f"{of} {what}" not in self._known:
            self._known[f"{of} {what}"] = str(self._number(of))
        return int(self._known[f"{of} {what}"])

    def _number(self, of: str) -> int:
        self._met[of] = self._met.get(of, 0) + 1
        return self._met[of]


_VARIABLE = re.compile(
    r"\b(?:02:42(?::[0-9a-f]{2}){4}\b|10\.0\.\d+\.\d+\b|172\.1[89]\.\d+\.\d+\b|fd[0-9a-f]{0,2}:[0-9a-f:]*(?:[0-9a-f]\b|::)"
    r"|(?:veth[0-9a-z]{8}|[0-9a-z]{25}|[0-9a-z]{12}|[0-9a-z]{10}|[0-9a-z]{8})\b)"
)
_TOOK = re.compile(r"\b\d+\.\d ms")
_MAC_OF_SIX = re.compile(r"02:42:00:00:00:00")
_LETTERS = string.digits + string.ascii_lowercase


def _made_up(what: str) -> str:
    """An id that looks like one, always the same for the same."""
    number = int.from_bytes(hashlib.sha256(what.encode()).digest(), "big")
    digits = []
    for _ in range(25):
        number, digit = divmod(number, len(_LETTERS))
        digits.append(_LETTERS[digit])
    return "".join(digits)


def _mac(address: str) -> str:
    return "02:42:" + ":".join(f"{byte:02x}" for byte in IPv4Address(address).packed)


def out_of_date(found: dict[str, str]) -> Iterable[str]:
    return [name for name, text in found.items() if not (p := FOLDER / f"{name}.md").exists() or p.read_text() != text]
