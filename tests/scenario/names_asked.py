"""Who asks for names in the tests of discovery: `dig` and `curl` of the host, entered into a task's namespace.

Nothing here imports the product but the lab's handles on machines.
"""

import re
from dataclasses import dataclass

from outside import Answer, TaskSeen, await_tasks, cli, parse_answer

from hivemesh.lab.lab import Lab
from hivemesh.lab.node import Node

IMAGE = "localhost/whoami"
QUIET = ("--detach", "--quiet", "--no-resolve-image")
SLEEP = (IMAGE, "sleep", "infinity")


@dataclass(frozen=True, slots=True)
class Reply:
    """What dig was told: the status, and the data of the records of the answer."""

    status: str
    data: frozenset[str]


@dataclass(frozen=True, slots=True)
class Asker:
    """A task as one who asks. Its sandbox goes by the first 12 characters of its id."""

    node: Node
    task: TaskSeen
    name: str
    """`service.slot.id`, as its container is called."""

    def inside(self, *command: str) -> tuple[int, str]:
        """A tool of the host, run in the task's network: its exit code and output."""
        done = self.node.exec("ip", "netns", "exec", self.task.id[:12], *command, check=False)
        return done.returncode, done.stdout

    def ask(self, name: str, kind: str = "A") -> Reply:
        """One question to the resolver of the sandbox; status TIMEOUT when nobody answers within a second."""
        words = ("-x", name) if kind == "PTR" else (name, kind)
        code, out = self.inside("dig", "+noall", "+comments", "+answer", "+tries=1", "+time=1", "@127.0.0.11", *words)
        status = re.search(r"status: (\w+)", out)
        if code or not status:
            return Reply("TIMEOUT", frozenset())
        answer = out.partition(";; ANSWER SECTION:\n")[2].splitlines()
        return Reply(status[1], frozenset(line.split()[-1] for line in answer if line and not line.startswith(";")))

    def names(self, name: str, kind: str = "A") -> frozenset[str]:
        """The addresses (or the name) that a name (or an address) has here; the answer must be without error."""
        reply = self.ask(name, kind)
        assert reply.status == "NOERROR", f"{self.name} asks {kind} {name}: {reply}"
        return reply.data

    def knows(self, name: str, kind: str = "A") -> bool:
        """Has the name an answer here? In the lab no other server could know it: it is SERVFAIL when ours does not."""
        reply = self.ask(name, kind)
        assert reply.status in ("NOERROR", "SERVFAIL"), f"{self.name} asks {kind} {name}: {reply}"
        return bool(reply.data)

    def curl(self, host: str, count: int = 1) -> list[Answer]:
        """Answers to requests on connections of their own, to port 80 of an address."""
        url = f"http://{f'[{host}]' if ':' in host else host}/"
        code, out = self.inside(
            "curl", "--silent", "--globoff", "--max-time", "3", "--header", "Connection: close",
            "--write-out", "\n%{num_connects} connection\n", *[url] * count,
        )  # fmt: skip
        assert code == 0, f"{self.name}$ curl {url}: exit code {code}"
        replies = out.split("1 connection\n")
        assert replies.pop() == ""
        return [parse_answer(reply) for reply in replies]

    def addresses(self, prefix: str) -> str:
        """The task's own address that begins so."""
        (found,) = (address for address in self.task.addresses if address.startswith(prefix))
        return found


def network(lab: Lab, name: str, *options: str) -> str:
    """A new overlay; its id."""
    return cli(lab.nodes[0], "docker", "network", "create", "--driver", "overlay", *options, name).strip()


def service(lab: Lab, name: str, *options: str, replicas: int = 1, command: tuple[str, ...] = (IMAGE,)) -> None:
    cli(lab.nodes[0], "docker", "service", "create", *QUIET, "--name", name, "--replicas", str(replicas),
        "--restart-delay", "100ms", "--stop-grace-period", "500ms", *options, *command)  # fmt: skip


def update(lab: Lab, name: str, *options: str) -> None:
    cli(lab.nodes[0], "docker", "service", "update", "--detach", "--quiet", "--no-resolve-image", *options, name)


def askers(lab: Lab, name: str, count: int = 1) -> list[Asker]:
    """The service's tasks, once so many run and no others are left."""
    tasks = await_tasks(lab, name, count)
    slots = {task["ID"]: task["Slot"] for task in lab.nodes[0].api("GET", "/tasks")}
    return [Asker(lab.node(task.node), task, f"{name}.{slots[task.id]}.{task.id}") for task in tasks]


def vips(lab: Lab, name: str, network: str) -> frozenset[str]:
    """The service's virtual addresses on a network (its id), in the words of the API."""
    endpoint = lab.nodes[0].api("GET", f"/services/{name}")["Endpoint"]
    return frozenset(
        vip["Addr"].partition("/")[0] for vip in endpoint.get("VirtualIPs") or () if vip["NetworkID"] == network
    )
