"""Many nodes on one machine: build them, let them form a swarm, find them again, remove every trace.

    lab-underlay   br0, the switch between the machines
      |-- n1       198.51.100.11, fd00:198:51:100::11   hivemeshd, manager
      |-- n2 …     198.51.100.12, …                     hivemeshd
      `-- client   198.51.100.100, …                    a host that is no node

`down` needs no record of what `up` did: machines are found by their mark, namespaces by their names, files by the lab's
folder. It can be repeated, and works after anything was killed.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from hivemesh.kernel.netns import call_inside
from hivemesh.lab import http
from hivemesh.lab.image import build_image, build_program, store_lock
from hivemesh.lab.machine import LabError, Machine, all_processes
from hivemesh.lab.node import Node
from hivemesh.lab.topology import CLIENT, DEFAULT_NAME, MAX_NODES, UNDERLAY4, UNDERLAY6, Places, Topology, check_name
from hivemesh.model.errors import Conflict, HivemeshError, Invalid, NotFound

RECORD = "lab.json"
READY_TIMEOUT = 30.0
"""Seconds until every node that joined is Ready in the manager's eyes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What a lab is asked to be; kept beside it, for a restart of a daemon."""

    nodes: int = 3
    managers: int = 1
    engine: str = "podman"
    balancer: str = "nftables"
    swarm: bool = True
    log_level: str = "info"

    def __post_init__(self) -> None:
        if self.engine not in ("podman", "process"):
            raise Invalid(f"the engine is podman or process, not {self.engine!r}")
        if not 1 <= self.managers <= self.nodes:
            raise Invalid(f"{self.managers} managers do not fit {self.nodes} nodes; there must be at least one")


class Lab:
    """A handle on the lab of that name, running or not."""

    def __init__(self, name: str = DEFAULT_NAME, settings: LabSettings | None = None) -> None:
        check_name(name)
        self.name = name
        self.places = Places.of_environment()
        self._disk = self.places.disk / name
        self._run = self.places.run / name
        self.settings = settings or self._recorded() or LabSettings(nodes=max(1, len(self._running_nodes())))
        self.topology = Topology(lab=name, nodes=self.settings.nodes)
        self.nodes = tuple(Node(spec, self.places) for spec in self.topology.node_specs)
        self.client = Machine(self.topology.client_spec, self.places)

    @property
    def machines(self) -> tuple[Machine, ...]:
        return (*self.nodes, self.client)

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise NotFound(f"lab {self.name} has no node {name}; it has {', '.join(node.name for node in self.nodes)}")

    @property
    def is_up(self) -> bool:
        return bool(machine_marks(self.name))

    # -- up -----------------------------------------------------------------------------------------------------------

    def up(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Build it; on failure nothing is left but the daemons' logs. Raises `Conflict` when it is up, `LabError`."""
        if os.geteuid():
            raise Invalid("a lab makes network namespaces: run it as root")
        if self.is_up:
            raise Conflict(f"lab {self.name} is up; `hivemesh lab down{self._name_option}` first")
        self.down()  # what a crash may have left of an earlier one
        try:
            progress("building the demo image")
            with store_lock(self.places):
                program = build_program(self.places)
                store = build_image(self.places) if self.settings.engine == "podman" else None
                self._write_record()
            progress(f"starting {self.settings.nodes} nodes and a client host")
            self._make_underlay()
            self._start_machines()
            if store:
                for node in self.nodes:
                    node.prepare_engine(store)
            self._each(lambda node: self._start_daemon(node, program))
            self._each(Node.await_daemon)
            if self.settings.swarm:
                progress("forming a swarm")
                self.form_swarm()
        except HivemeshError as error:
            logs = self._keep_logs()
            self.down()
            if logs is None:
                raise
            raise LabError(f"{error} (the daemons' logs are kept in {logs})") from error
        except BaseException:  # interrupted: nobody wants to read logs
            self.down()
            raise

    def form_swarm(self) -> None:
        """`swarm init` on n1, `swarm join` on the others, all through the API; returns when every node is Ready."""
        first = self.nodes[0]
        first.api("POST", "/swarm/init", {"AdvertiseAddr": str(first.spec.v4.ip), "ListenAddr": "0.0.0.0:2377"})
        tokens = first.api("GET", "/swarm")["JoinTokens"]

        def join(node: Node) -> None:
            is_manager = self.nodes.index(node) < self.settings.managers
            node.api("POST", "/swarm/join", {
                "RemoteAddrs": [f"{first.spec.v4.ip}:2377"],
                "JoinToken": tokens["Manager" if is_manager else "Worker"],
                "AdvertiseAddr": str(node.spec.v4.ip),
                "ListenAddr": "0.0.0.0:2377",
            })  # fmt: skip

        self._each(join, self.nodes[1 : self.settings.managers])
        self._each(join, self.nodes[self.settings.managers :])
        self.await_ready()

    def await_ready(self) -> None:
        """Until the first manager calls every node Ready. Raises `LabError` after `READY_TIMEOUT`."""
        until = time.monotonic() + READY_TIMEOUT
        while True:
            waiting = self._not_ready()
            if not waiting:
                return
            if time.monotonic() > until:
                raise LabError(f"not Ready after {READY_TIMEOUT:.0f} s: {', '.join(waiting)}; see {waiting[0]}'s log")
            time.sleep(0.02)

    def _not_ready(self) -> list[str]:
        try:
            nodes = self.nodes[0].api("GET", "/nodes")
        except http.Refused as error:  # the manager's side is still starting
            if error.status != 503:
                raise
            nodes = []
        states = {node["Description"]["Hostname"]: node["Status"]["State"] for node in nodes}
        return [node.name for node in self.nodes if states.get(node.name) != "ready"]

    def _make_underlay(self) -> None:
        ip_batch([f"netns add {self.topology.underlay}"])
        lines = [
            "link set lo up",
            "link add br0 type bridge",
            f"addr add {UNDERLAY4} dev br0",
            f"addr add {UNDERLAY6} dev br0 nodad",
            "link set br0 up",
        ]
        ip_batch(lines, self.topology.underlay)
        # A switch knows nothing of the machine's packet filters (the settings are there once br_netfilter is).
        call_inside(self.topology.underlay, _let_bridges_be)
        self._wire(self.machines)

    def _wire(self, machines: Sequence[Machine]) -> None:
        """Network namespaces for them, on the underlay."""
        lines = [f"netns add {machine.spec.netns}" for machine in machines]
        # An index of its own: where both ends of a pair have the same one, the kernel takes the device for one without
        # a lower half and reports its carrier, so the bridge forwards, up to a second later (linkwatch_urgent_event).
        lines += [
            f"link add eth0 index {MAX_NODES + 100} netns {machine.spec.netns} type veth"
            f" peer name {machine.name} netns {self.topology.underlay}"
            for machine in machines
        ]
        ip_batch(lines)
        ip_batch([f"link set {machine.name} master br0 up" for machine in machines], self.topology.underlay)
        for machine in machines:
            spec = machine.spec
            lines = ["link set eth0 up", f"addr add {spec.v4} dev eth0", f"addr add {spec.v6} dev eth0 nodad"]
            lines += [f"route add default via {UNDERLAY4.ip}", f"route add ::/0 via {UNDERLAY6.ip}"]
            ip_batch(lines, spec.netns)

    def _start_machines(self) -> None:
        self._disk.mkdir(parents=True, exist_ok=True)
        self._hosts.write_text(self.topology.hosts_file())
        self._switch_on(self.machines)

    @property
    def _hosts(self) -> Path:
        return self._disk / "hosts"

    def _switch_on(self, machines: Sequence[Machine]) -> None:
        starting = [(machine, machine.begin(self._hosts)) for machine in machines]
        for machine, process in starting:
            machine.await_ready(process)

    def _each(self, action: Callable[[Node], None], nodes: Sequence[Node] | None = None) -> None:
        """On all nodes at once; the first failure is raised when all have finished."""
        chosen = self.nodes if nodes is None else nodes
        if chosen:
            with ThreadPoolExecutor(max_workers=min(len(chosen), 8)) as pool:
                list(pool.map(action, chosen))

    def reset(self) -> None:
        """Remove all that users made, and wait until no task is left: the next test's start."""
        first = self.nodes[0]
        for service in first.api("GET", "/services"):
            first.api("DELETE", f"/services/{service['ID']}")
        until = time.monotonic() + READY_TIMEOUT
        while tasks := first.api("GET", "/tasks"):
            if time.monotonic() > until:
                raise LabError(f"{len(tasks)} tasks outlive their services; see `hivemesh lab logs n1`")
            time.sleep(0.02)
        for kind in ("secrets", "configs"):
            for payload in first.api("GET", f"/{kind}"):
                first.api("DELETE", f"/{kind}/{payload['ID']}")
        for network in first.api("GET", "/networks"):
            if network["Scope"] == "swarm" and not network["Ingress"]:
                first.api("DELETE", f"/networks/{network['Id']}")

    # -- life ---------------------------------------------------------------------------------------------------------

    def _start_daemon(
        self, node: Node, program: Path, options: Sequence[str] = (), command: Sequence[str] = ()
    ) -> None:
        node.start_daemon(
            self.settings.engine,
            program,
            balancer=self.settings.balancer,
            log_level=self.settings.log_level,
            options=options,
            command=command,
        )

    def restart_daemon(
        self, name: str, *, kill: bool = False, options: Sequence[str] = (), command: Sequence[str] = ()
    ) -> None:
        """Stop the node's daemon (politely or not) and start it anew, with more `options` of `hivemeshd`, or by another
        `command`; tasks and packets carry on meanwhile."""
        node = self.node(name)
        if kill:
            node.kill_daemon()
        else:
            node.stop_daemon()
        with store_lock(self.places):
            program = build_program(self.places)
        self._start_daemon(node, program, options, command)
        node.await_daemon()

    def reboot(self, name: str) -> None:
        """As when the power fails and comes back: of a node only its disk remains, and its daemon starts at boot."""
        node = self.node(name)
        node.stop()
        node.remove_cgroups()
        ip_batch([f"link del {node.name}"], self.topology.underlay)
        ip_batch([f"netns del {node.spec.netns}"])
        _remove_tree(node.run)
        self._wire([node])
        self._switch_on([node])
        with store_lock(self.places):
            program = build_program(self.places)
        self._start_daemon(node, program)
        node.await_daemon()

    # -- down ---------------------------------------------------------------------------------------------------------

    def down(self) -> bool:
        """Remove every trace. True when there was something to remove."""
        found = self._disk.exists() or self._run.exists() or self.is_up
        # Every machine that runs under our mark, and every folder that looks like one, whatever the record says.
        names = set(machine_marks(self.name)) | {entry.name for entry in _folders(self._disk) if entry.name != CLIENT}
        nodes = [
            Node(spec, self.places) for spec in Topology(lab=self.name, nodes=MAX_NODES).machines if spec.name in names
        ]
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(Machine.stop, nodes))
        for node in nodes:
            node.remove_cgroups()
        for space in namespaces():
            if re.fullmatch(rf"hm-{re.escape(self.name)}-(n[0-9]+|{CLIENT}|underlay)", space):
                subprocess.run(["ip", "netns", "del", space], check=True, capture_output=True)
                found = True
        for folder in (self._disk, self._run):
            _remove_tree(folder)
        with store_lock(self.places):
            if not [entry for entry in _folders(self.places.disk) if entry != self.places.images]:
                _remove_tree(self.places.images)
        # The last lab turns off the light; another one may be starting, and then the folders are not empty.
        for folder in (self.places.disk, self.places.run):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return found

    # -- records ------------------------------------------------------------------------------------------------------

    @property
    def _name_option(self) -> str:
        return "" if self.name == DEFAULT_NAME else f" --name {self.name}"

    def _write_record(self) -> None:
        self._disk.mkdir(parents=True, exist_ok=True)
        fresh = self._disk / f"{RECORD}.new"
        fresh.write_text(json.dumps(asdict(self.settings)))
        fresh.rename(self._disk / RECORD)

    def _recorded(self) -> LabSettings | None:
        try:
            return LabSettings(**json.loads((self._disk / RECORD).read_text()))
        except (OSError, ValueError, TypeError, Invalid):
            return None

    def _running_nodes(self) -> list[str]:
        return [name for name in machine_marks(self.name) if name != CLIENT]

    def _keep_logs(self) -> Path | None:
        logs = [node.log for node in self.nodes if node.log.exists()]
        if not logs:
            return None
        kept = Path(tempfile.mkdtemp(prefix=f"hivemesh-{self.name}-logs-"))
        for log in logs:
            shutil.copy(log, kept / f"{log.parent.name}.log")
        return kept


def _let_bridges_be() -> None:
    for name in ("iptables", "ip6tables", "arptables"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("0")


def machine_marks(lab: str) -> list[str]:
    """The names of that lab's running machines."""
    prefix = f"hivemesh-lab/{lab}/"
    return [p.arguments[0].removeprefix(prefix) for p in all_processes() if p.arguments[0].startswith(prefix)]


def labs() -> list[str]:
    """The names of all labs of which there is anything: a machine, or files."""
    places = Places.of_environment()
    names = {entry.name for entry in _folders(places.disk) if entry != places.images}
    for process in all_processes():
        parts = process.arguments[0].split("/")
        if parts[0] == "hivemesh-lab" and len(parts) == 3:
            names.add(parts[1])
    return sorted(names)


def namespaces() -> list[str]:
    try:
        return os.listdir("/run/netns")
    except FileNotFoundError:
        return []


def ip_batch(lines: Iterable[str], namespace: str | None = None) -> None:
    """Run commands of iproute2 in one process. Raises `LabError` with its words."""
    where = ["-n", namespace] if namespace else []
    done = subprocess.run(
        ["ip", *where, "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"ip failed{' in ' + namespace if namespace else ''}: {done.stderr.strip()}")


def _folders(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []


def _remove_tree(path: Path) -> None:
    """A container's storage may lose files while we read it (a dying conmon), so once more is tried."""
    for _ in range(3):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(path)


__all__ = ["Lab", "LabError", "LabSettings", "http", "labs"]
