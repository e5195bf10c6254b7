"""What the conformance tests share: rows of a table, the lab that answers them, and what each was answered.

A row is a command line of docker, or one HTTP request, with what must come of it. A row is run once in a session: the
test of that row and the page of compatibility look at the same outcome.
"""

import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from outside import Said, await_tasks, eventually

from hivemesh.api.operations import OPERATIONS
from hivemesh.lab.http import Refused, UnixConnection
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.node import Node
from labs import a_lab

IMAGE = "localhost/whoami"
PORT = 8100
PATIENCE = 40.0
OURS = {f"{operation.method} {operation.path}" for operation in OPERATIONS if not operation.engine} | {"GET /nosuch"}
LEFT = ("POST /swarm/leave?force=1",)
HIVEMESH = str(Path(sys.executable).with_name("hivemesh"))
RESTART, KEEP = "restart", "keep "
"""Lines beside a row: restart the daemon of its node; keep what a command says under a name, as `keep KEY docker …`."""
ENGINES_WORDS = re.compile(r"no such container|no such exec|image not known|container state improper")
GONE = "GONE"
"""As an effect: the object is not there."""

KEPT = {"services": ("web", "agent"), "networks": ("front",), "secrets": ("key",), "configs": ("conf",)}
"""What every row finds and leaves; anything else that a row makes is removed after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`line` is a command (`docker …`, `hivemesh …`) or a request (`GET /services`), with `TASK`, `NODE`, `WEB` for
    ids; in a request, `version=@/services/web` stands for the object's present version.

    `effects` are looked for after it until they are so: "/path Some.Field" to a value, or a path to `GONE`. `refused`
    has words of the refusal; without any, it has to succeed. `before` and `after` are lines of the same kinds.
    """

    group: str
    line: str
    says: tuple[str, ...] = ()
    effects: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    status: int = 0  # of a request that is refused
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    stdin: str = ""
    body: Any = None
    node: str = "n1"
    template: str = ""  # of a request: its path in the API's description

    def __str__(self) -> str:
        return f"{self.node}: {self.line}" if self.node != "n1" else self.line


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a row; `verdict` is what the page says, None when this docker does not know the command."""

    verdict: str | None
    problem: str = ""  # why it is not what the row wants


class Board:
    """Runs rows, each once."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.words: dict[str, str] = {}
        self._outcomes: dict[int, Outcome] = {}  # by identity: rows hold what cannot be hashed

    # -- the world ----------------------------------------------------------------------------------------------------

    def make_world(self) -> None:
        """n1 manages, n2 works, n3 is outside; two services, a network, a secret, a config, a container."""
        first, second, _ = self.lab.nodes
        for name, text in FILES.items():
            (self.folder / name).write_text(text)
        first.api("POST", "/swarm/init", {"AdvertiseAddr": str(first.spec.v4.ip), "ListenAddr": "0.0.0.0:2377"})
        token = first.api("GET", "/swarm")["JoinTokens"]["Worker"]
        manager = f"{first.spec.v4.ip}:2377"
        second.api("POST", "/swarm/join", {"RemoteAddrs": [manager], "JoinToken": token})
        front = first.api("POST", "/networks/create", {"Name": "front", "Driver": "overlay", "Attachable": True})["Id"]
        key = first.api("POST", "/secrets/create", {"Name": "key", "Data": "czNjcmV0"})["ID"]
        conf = first.api("POST", "/configs/create", {"Name": "conf", "Data": "Y29uZg=="})["ID"]
        file = {"UID": "0", "GID": "0", "Mode": 292}
        container = {
            "Image": IMAGE,
            "Secrets": [{"SecretID": key, "SecretName": "key", "File": {"Name": "key", **file}}],
            "Configs": [{"ConfigID": conf, "ConfigName": "conf", "File": {"Name": "/conf", **file}}],
            "StopGracePeriod": 10**9,
        }
        template = {"ContainerSpec": container, "Networks": [{"Target": "front"}]}
        first.api("POST", "/services/create", {
            "Name": "web", "Labels": {"tier": "web"}, "TaskTemplate": template, "Mode": {"Replicated": {"Replicas": 2}},
            "EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": PORT}]},
        })  # fmt: skip
        plain = {"ContainerSpec": {"Image": IMAGE, "StopGracePeriod": 10**9}}
        first.api("POST", "/services/create", {"Name": "agent", "TaskTemplate": plain, "Mode": {"Global": {}}})
        stays = next(task for task in await_tasks(self.lab, "web", 2) if task.node == "n1")  # rows drain n2
        await_tasks(self.lab, "agent", 2)
        self.docker(first, "run", "--detach", "--name", "box", "--network", "front", "--label", "kind=box", IMAGE)
        nodes = {node["Description"]["Hostname"]: node["ID"] for node in first.api("GET", "/nodes")}
        self.words = {
            "IMAGE": IMAGE, "TASK": stays.id, "WEB": first.api("GET", "/services/web")["ID"], "FRONT": front,
            "NODE": nodes["n2"], "TOKEN": token, "MANAGER": manager, "KEY": key, "CONF": conf,
        }  # fmt: skip

    def restore(self, row: Row) -> None:
        """Remove what the row made, whatever it was."""
        first = self.lab.nodes[0]
        for line in row.after:
            self._perform(_beside(row, line))
        if "promote n2" in row.line:  # other rows want a worker
            eventually(self._await_worker, 30.0)
        if row.node != "n1":
            return
        if "--availability" in row.line:  # tasks have moved
            await_tasks(self.lab, "web", 2)
            await_tasks(self.lab, "agent", 2)
        if row.group in ("Containers", "container"):
            for found in first.api("GET", "/containers/json?all=1"):
                if "t-1" in [name.strip("/") for name in found["Names"]]:
                    first.api("DELETE", f"/containers/{found['Id']}?force=1")
        for kind in ("services", "secrets", "configs"):
            for found in first.api("GET", f"/{kind}"):
                if found["Spec"]["Name"] not in KEPT[kind]:
                    first.api("DELETE", f"/{kind}/{found['ID']}")
        for found in first.api("GET", "/networks"):
            name = found["Name"]
            if name not in (*KEPT["networks"], "bridge", "host", "none", "podman", "docker_gwbridge", "ingress"):
                eventually(lambda name=name: self._drop_network(name))  # type: ignore[misc]

    def _await_worker(self) -> None:
        said = raw(self.lab.node("n2"), "GET", "/nodes", None)
        assert "Worker nodes can't be used" in said.err, said

    def _drop_network(self, name: str) -> None:
        try:
            self.lab.nodes[0].api("DELETE", f"/networks/{name}")
        except Refused as error:
            if error.status != 404:
                raise AssertionError(str(error)) from error  # its last task may still be on its way out

    # -- running ------------------------------------------------------------------------------------------------------

    def outcome(self, row: Row) -> Outcome:
        if id(row) not in self._outcomes:
            self._outcomes[id(row)] = self._run(row)
        return self._outcomes[id(row)]

    def _run(self, row: Row) -> Outcome:
        try:
            for line in row.before:
                said = self._perform(_beside(row, line))
                if said.code not in (0, 200, 201, 204):
                    return Outcome("unknown", f"{line}: {said}")
            return self._judge(row, self._perform(row))
        except subprocess.TimeoutExpired as error:
            return Outcome("no end", str(error))
        finally:
            self.restore(row)

    def _judge(self, row: Row, said: Said) -> Outcome:
        everything = said.out + said.err
        if "unknown flag" in said.err or "unknown command" in said.err or "is not a docker command" in said.err:
            return Outcome(None)
        good = said.code == 0 or 200 <= said.code < 400
        verdict = "yes" if good else self._refusal(row, said)
        if "Traceback" in everything or (
            said.code == 500 and "update out of sequence" not in said.err and row.template in OURS
        ):
            return Outcome(verdict, f"an internal error: {said}")
        if bool(row.refused) == good:
            return Outcome(verdict, f"expected {'a refusal' if good else 'success'}: {said}")
        if row.status and said.code != row.status:
            return Outcome(verdict, f"expected {row.status}: {said}")
        missing = [word for word in (*row.says, *row.refused) if self._fill(word) not in everything]
        if missing:
            return Outcome(verdict, f"{missing} not in {said}")
        try:
            for effect, wanted in row.effects.items():
                eventually(lambda effect=effect, wanted=wanted: self._see(row, effect, wanted), 20.0)  # type: ignore[misc]
        except AssertionError as error:
            return Outcome(verdict, f"after {row.line}: {error}")
        return Outcome(verdict)

    def _see(self, row: Row, effect: str, wanted: Any) -> None:
        path, _, fields = effect.partition(" ")
        try:
            value = self.lab.node(row.node).api("GET", self._fill(path))
        except Refused as error:
            if (wanted, error.status) != (GONE, 404):
                raise AssertionError(f"GET {path}: {error}") from error
            return
        for name in fields.split(".") if fields else ():
            value = _inside(value, name)
        wanted = self.words.get(wanted, wanted) if isinstance(wanted, str) else wanted
        if isinstance(wanted, dict) and wanted and isinstance(value, dict):
            value = {name: inner for name, inner in value.items() if name in wanted}
        assert value == wanted, f"{effect} is {value!r}, not {wanted!r}"

    def _refusal(self, row: Row, said: Said) -> str:
        """The words of a refusal, without what differs from run to run. Those of the docker command are its own."""
        text = said.err.strip()
        if row.line.startswith("hivemesh "):
            return self._plain(text.removeprefix("Error: "))
        if not row.line.startswith("docker "):
            ours = row.template in OURS or not row.template.strip()
            return f"{said.code}: {self._plain(text)}" if ours else f"{said.code}, in the engine's words"
        told = re.search(r"(?:Error response from daemon: |\(HTTP code \d+\) )(.*)", text)
        if told and ENGINES_WORDS.search(told[1]):
            return "refused in the engine's words"
        return self._plain(told[1]) if told else "refused by the docker command itself"

    def _plain(self, text: str) -> str:
        for word, value in self.words.items():
            if len(value) > 12:
                text = text.replace(value, word)
        text = re.sub(r": Cannot connect to host.*", "", text)  # its addresses differ from machine to machine
        text = re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-z]{25}\b", "ID", text.splitlines()[0] if text else "")
        return text.replace("|", "\\|").replace("<", "&lt;")

    def _fill(self, text: str) -> str:
        return re.sub(r"\b[A-Z]+\b", lambda found: self.words.get(found[0], found[0]), text)

    def _perform(self, row: Row) -> Said:
        node = self.lab.node(row.node)
        line = self._fill(row.line)
        if line == RESTART:
            self.lab.restart_daemon(node.name)
            return Said(0, "", "")
        if line.startswith(KEEP):
            _, name, command = line.split(" ", 2)
            said = self.docker(node, *shlex.split(command)[1:])
            self.words[name] = said.out.strip()
            return said
        if line.startswith("hivemesh "):
            done = node.exec(HIVEMESH, *shlex.split(line)[1:], check=False, timeout=PATIENCE)
            return Said(done.returncode, done.stdout, done.stderr)
        if line.startswith("docker "):
            return self.docker(node, *shlex.split(line)[1:], stdin=self._fill(row.stdin))
        method, _, target = line.partition(" ")
        target, _, versioned = target.partition("@")  # an update, of the version that the object at this path has now
        if versioned:
            target += str(node.api("GET", versioned)["Version"]["Index"])
        return raw(node, method, quote(target, safe="/?=&%:~+,"), self._body(row.body))

    def _body(self, body: Any) -> Any:
        return json.loads(self._fill(json.dumps(body))) if isinstance(body, dict) else body

    def docker(self, node: Node, *words: str, stdin: str = "") -> Said:
        """docker as its users run it: beside the node, over the node's socket."""
        environment = {**os.environ, "DOCKER_HOST": node.docker_host, "DOCKER_CONFIG": str(self.folder / "docker")}
        done = subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True, check=False,
                              timeout=PATIENCE, env=environment, cwd=self.folder)  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)


def _beside(row: Row, line: str) -> Row:
    """What goes before or after a row, on its node or on the one that the line begins with."""
    node, told, rest = line.partition(": ")
    return (
        Row(group="", line=rest, node=node)
        if told and node in ("n1", "n2", "n3")
        else Row(group="", line=line, node=row.node)
    )


def _inside(value: Any, name: str) -> Any:
    """A field of an object, an element of a list, `#` for how many there are; None when it is not there."""
    if name == "#":
        return len(value or ())
    if isinstance(value, list):
        return value[int(name)] if len(value) > int(name) else None
    return value.get(name) if isinstance(value, dict) else None


def raw(node: Node, method: str, target: str, body: Any = None) -> Said:
    """One request: the status as code, the body as output, or the message of an error."""
    connection = UnixConnection(node.socket, PATIENCE)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        kind = {"Content-Type": "application/json"} if isinstance(body, dict | list | str) else {}
        if isinstance(body, bytes):
            kind = {"Content-Type": "application/x-tar"}
        connection.request(method, target, data, kind)
        answer = connection.getresponse()
        text = _read(answer, target)
    finally:
        connection.close()
    if answer.status < 400:
        return Said(answer.status, text, "")
    try:
        return Said(answer.status, "", str(json.loads(text)["message"]))
    except (ValueError, KeyError, TypeError):
        return Said(answer.status, "", text)


def _read(answer: http.client.HTTPResponse, target: str) -> str:
    if answer.status < 400 and ("follow=1" in target or ("/events" in target and "until" not in target)):
        return ""
    return answer.read().decode(errors="replace")


FILES = {
    "env.list": "FROM_FILE=1\n",
    "data.txt": "some data\n",
    "empty.txt": "",
    "stack.yml": """\
services:
  front:
    image: localhost/whoami
    ports: ["8101:80"]
    networks: [inner]
    configs: [settings]
    secrets: [password]
    deploy: {replicas: 1, labels: {part: front}}
  jobs:
    image: localhost/whoami
    deploy: {mode: replicated-job, replicas: 0}
networks:
  inner: {}
configs:
  settings: {file: data.txt}
secrets:
  password: {file: data.txt}
""",
    "bad.yml": "services:\n  front:\n    ports: ['http:80']\n",
}


@contextmanager
def conformance_board() -> Iterator[Board]:
    """A lab of its own with the world in it."""
    with a_lab(LabSettings(nodes=3, swarm=False)) as lab:
        with tempfile.TemporaryDirectory(prefix="hm-conform-") as folder:
            board = Board(lab, Path(folder))
            try:
                board.make_world()
            except Exception as error:
                told = lab.nodes[0].api("GET", "/info")["Swarm"]["Error"]
                error.add_note(f"n1 says {told!r}; its log: {lab.nodes[0].log.read_text()[-2000:]}")
                raise
            yield board


def check(board: Board, row: Row) -> None:
    """The test of a row."""
    outcome = board.outcome(row)
    if outcome.verdict is None:
        pytest.skip("the docker command here does not know this")
    assert not outcome.problem, outcome.problem


def names(rows: Sequence[Row]) -> list[str]:
    return [str(row) for row in rows]
