"""The etcd server of a manager: started, kept going, and ended by the daemon; it goes on while the daemon is away.

- *It belongs to nobody.* A daemon that ends leaves it running, since the other managers may need its vote; the next one
  finds it by its data directory among this machine's processes.
- *Only managers speak to it.* Its one client is this daemon, over a socket in a directory that only root may enter. Its
  peers show a certificate of the swarm's CA that carries the managers' name. It reads certificates at each connection,
  the CA only when it starts: a changed CA restarts it, each manager at another moment.
- *Its files are copies.* Certificate and key lie in the run directory, which a reboot empties; beside them the CA that
  the running one was started with, by which the next daemon sees that a restart is due.
"""

import asyncio
import logging
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from hivemesh.agent.identity import Identity
from hivemesh.agent.private import write_private
from hivemesh.control.members import peer_url
from hivemesh.model.addr import host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Unavailable
from hivemesh.pki import MANAGER_NAME, certificates_in
from hivemesh.store.etcdapi import EtcdClient
from hivemesh.store.room import QUOTA
from hivemesh.wire import codec

log = logging.getLogger("hivemesh.etcd")

PROGRAM = "etcd"
MISSING = "etcd is not installed on this machine: install it (Debian: apt-get install etcd-server) and try again"
RECORD = "etcd.json"
SOCKET = "clients:0"
"""etcd takes a socket's name only if it looks like host:port; it is relative to where etcd is started."""
RETRY = (0.1, 5.0)
"""Seconds until one that ended is started again, doubled while it ends at once."""
ENDS = 3
"""Times in a row it may end at once until somebody should look why."""
STEADY = 5.0
"""Seconds one must have run for its successor to be started without a pause."""
DISMISSED = 5.0
"""Seconds within which a demoted manager whose member was removed hears of it; until then nothing is started again."""
LOOK_PERIOD = 5.0
"""Seconds between looks at certificate and log."""
RESTART_WITHIN = 15.0
"""Seconds within which, at random, a changed CA restarts it."""
STOP_TIMEOUT = 5.0
APPEAR_TIMEOUT = 5.0
LEAST = 1 << 20
"""Bytes without which a disk counts as full."""
MAX_LOG = 4 << 20
"""Bytes of its log; then it begins anew."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`etcd.json` in the store's directory: that the state is in etcd, and how ours began."""

    members: dict[str, str] = {}  # URL for the others by name (node id), as of then
    new: bool = False  # it began the cluster


def recorded(directory: Path) -> Record | None:
    """What is known of the store under `directory`; None when it is not in an etcd of ours."""
    try:
        return codec.from_json((directory / RECORD).read_bytes(), Record)
    except (OSError, msgspec.MsgspecError):
        return None


def keep_record(directory: Path, record: Record) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(directory / RECORD, codec.to_json(record))


class Unsteady(Exception):
    """It ends each time it is started, or ended for good: it may be no member any more."""


class EtcdServer:
    """This manager's member of the store. `identity` is asked each time: certificates are renewed."""

    def __init__(self, identity: Callable[[], Identity], directory: Path, run_dir: Path) -> None:
        """`directory` is the store's, `run_dir` the daemon's."""
        self._identity = identity
        self._directory = directory / "etcd"
        self._store = directory
        self._files = run_dir / "etcd"
        self._log = run_dir / "etcd.log"
        self._force = False

    @property
    def peer(self) -> str:
        """The URL other members reach this one at."""
        return peer_url(self._identity().manager_addr)

    def client(self) -> EtcdClient:
        return EtcdClient(socket=self._files / SOCKET, ailing=self.ailing)

    def ailing(self) -> str:
        """Why it may not answer: it ends when it cannot write, and is started again until it can."""
        try:
            disk = os.statvfs(self._store)
        except OSError:
            return ""
        full = disk.f_bavail * disk.f_frsize < LEAST
        return f"the disk under {self._store} is full: make room, and it goes on by itself" if full else ""

    async def begin(self) -> None:
        """Have nothing, as the first member of a new cluster. Raises `Unavailable`."""
        require()
        await self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        await self._launch(Record(members={self._name: self.peer}, new=True))

    def alone(self) -> None:
        """Start as the only member when it starts next, whoever the members were."""
        self._force = True

    async def run(self, dismissed: Callable[[], bool]) -> None:
        """Keep it going until cancelled; it goes on then. Raises `Unsteady`, or `Unavailable` when there is no etcd.

        `dismissed` says that this manager is about to be none: then what ends is most likely meant to, and nothing is
        started again before somebody has asked.
        """
        delay, ends, loop = RETRY[0], 0, asyncio.get_running_loop()
        while True:
            found = self._process()
            if found is None:
                while (record := recorded(self._store)) is None:  # noqa: ASYNC110 (a file; other managers are asked)
                    await asyncio.sleep(RETRY[0])
                found = await self._launch(record)
            else:
                log.info("etcd runs already, as process %d", found)
            began = loop.time()
            await self._accompany(found)
            if dismissed():
                log.info("etcd has ended: this manager is dismissed")
                await asyncio.sleep(DISMISSED)
                raise Unsteady  # promoted again before it heard of that, it has to become a member anew
            log.warning("etcd (process %d) has ended; %s says why", found, self._log)
            ends += 1
            if loop.time() - began >= STEADY:
                delay, ends = RETRY[0], 0
            if ends == ENDS:
                raise Unsteady
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY[1])

    async def stop(self) -> None:
        """End it, and wait until it has."""
        found = self._process()
        if found is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal(found, number)
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await _ended(found)
                return
            except TimeoutError:
                continue

    def forget(self) -> None:
        """It is a member no more, and what it holds is of no use. Not while it runs."""
        (self._store / RECORD).unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def began(self) -> bool:
        """Whether it ever started as a member: then it knows the others by itself."""
        return (self._directory / "member").is_dir()

    # --- one process --------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._identity().facts.node_id

    async def _launch(self, record: Record) -> int:
        """The id of the new process. Raises `Unavailable`."""
        require()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_files()
        write_private(self._began_with, (self._files / "ca.pem").read_bytes())
        (self._files / SOCKET).unlink(missing_ok=True)  # of one that was killed: etcd would not replace it
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        with self._log.open("ab") as output:
            started = await asyncio.create_subprocess_exec(
                "setsid", "--fork", PROGRAM, *self._options(record),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                cwd=self._files,
            )  # fmt: skip
        await started.wait()
        self._force = False
        for _ in range(int(APPEAR_TIMEOUT / 0.01)):
            found = self._process()
            if found is not None:
                log.info("etcd runs as process %d", found)
                return found
            await asyncio.sleep(0.01)
        raise Unavailable(f"etcd does not start: {_last_line(self._log)}")

    def _options(self, record: Record) -> list[str]:
        host, _ = parse_host_port(self._identity().facts.listen, DEFAULT_LISTEN_PORT, "listen address")
        if host in ("", "*"):
            host = "0.0.0.0"
        if host == "0.0.0.0" and self._identity().facts.addr.version == 6:
            host = "::"
        port = self.peer.rpartition(":")[2]
        node, authority = str(self._files / "node.pem"), str(self._files / "ca.pem")
        options = {
            "name": self._name,
            "data-dir": str(self._directory),
            "listen-peer-urls": f"https://{host_port(host, int(port))}",
            "initial-advertise-peer-urls": self.peer,
            "listen-client-urls": f"unix://{SOCKET}",
            "advertise-client-urls": f"unix://{SOCKET}",
            "initial-cluster": ",".join(f"{name}={url}" for name, url in record.members.items()),
            "initial-cluster-state": "new" if record.new else "existing",
            "initial-cluster-token": self._identity().facts.cluster_id,
            "peer-cert-file": node,
            "peer-key-file": node,
            "peer-trusted-ca-file": authority,
            "peer-client-cert-auth": "true",
            "peer-cert-allowed-hostname": MANAGER_NAME,
            "experimental-peer-skip-client-san-verification": "true",  # it may call from another address
            "max-txn-ops": "100000",  # a service of thousands of tasks is one transaction
            "max-request-bytes": str(32 << 20),
            "quota-backend-bytes": str(QUOTA),
            "heartbeat-interval": "50",  # managers are near each other; failing over takes a few times the election
            "election-timeout": "500",
            "snapshot-count": "10000",
            "pre-vote": "true",  # one that comes back from a partition ends nobody's term
            "logger": "zap",
            "log-level": "warn",
            "log-outputs": "stderr",
            "force-new-cluster": "true" if self._force else "false",
        }
        return [f"--{name}={value}" for name, value in options.items()]

    async def _accompany(self, process: int) -> None:
        """Until it has ended."""
        ending = asyncio.create_task(_ended(process))
        try:
            while not ending.done():
                if self._write_files():
                    log.info("the swarm's CA has changed: restarting etcd")
                    await asyncio.wait({ending}, timeout=random.uniform(0, RESTART_WITHIN))
                    _signal(process, signal.SIGTERM)
                    await ending
                if self._log.exists() and self._log.stat().st_size > MAX_LOG:
                    os.truncate(self._log, 0)
                await asyncio.wait({ending}, timeout=LOOK_PERIOD)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    @property
    def _began_with(self) -> Path:
        return self._files / "began-with.pem"

    def _write_files(self) -> bool:
        """Whether the CA in them is another one than the running server knows."""
        identity = self._identity()
        self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (("node.pem", identity.credentials()), ("ca.pem", identity.ca.encode())):
            path = self._files / name
            if name == "ca.pem" and path.exists() and len(certificates_in(identity.ca)) > 1:
                continue  # one root takes over from another: until it has, the one that is known here vouches for both
            if not path.exists() or path.read_bytes() != text:
                write_private(path, text)
        try:
            return (self._files / "ca.pem").read_bytes() != self._began_with.read_bytes()
        except FileNotFoundError:
            return False

    def _process(self) -> int | None:
        """The running one of this data directory, by what it was started with."""
        mark, here = f"--data-dir={self._directory}".encode(), os.stat("/proc/self/ns/mnt").st_ino
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                arguments = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
                ours = mark in arguments and os.path.basename(arguments[0]) == PROGRAM.encode()
                if ours and os.stat(f"/proc/{name}/ns/mnt").st_ino == here and _alive(int(name)):
                    return int(name)
            except OSError:  # it has ended since the folder was read
                continue
        return None


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


def require() -> None:
    """Raises `Unavailable` when this machine has no etcd."""
    if not is_installed():
        raise Unavailable(MISSING)


def _alive(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"


def _signal(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


async def _ended(process: int) -> None:
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"it said nothing (log: {path})"
