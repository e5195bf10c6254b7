"""The resolver as a process, in real namespaces, asked by dig. Run by test_resolver.py on a machine of its own."""

import functools
import ipaddress
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from hivemesh.kernel.sockets import NETNS_DIR, inside
from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID
from hivemesh.wire.codec import unpack
from hivemesh.wire.resolver import (
    LENGTH,
    RESOLVER_ADDRESS,
    RESOLVER_PORT,
    Forget,
    Frame,
    FromResolver,
    Greeting,
    Names,
    Sandbox,
    Sync,
    Synced,
    TakeOver,
    framed,
)

FRONT, BACK = NetworkID("front-id"), NetworkID("back-id")
SERVER = (RESOLVER_ADDRESS, RESOLVER_PORT)


def sh(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def ips(*texts: str) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


def front(**more: tuple[Address, ...]) -> Names:
    return Names(
        network=FRONT,
        name="front",
        addresses={"web": ips("10.0.1.2", "fd00::2"), "tasks.web": ips("10.0.1.3", "10.0.1.4"), **more},
        reverse={ips("10.0.1.3")[0]: "web.1.abc"},
    )


BACK_NAMES = Names(network=BACK, name="back", addresses={"db": ips("10.0.2.2")}, reverse={})


def sandbox(name: str, *networks: NetworkID, forward: bool = False) -> Sandbox:
    return Sandbox(id=name, netns=f"{NETNS_DIR}/{name}", networks=networks or (FRONT,), forward=forward)


class Daemon:
    """A daemon's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        while True:
            try:
                self.sock.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.005)
        self._stream = self.sock.makefile("rb")
        greeting = self.hear()
        assert isinstance(greeting, Greeting)
        self.greeting = greeting
        self._number = 0

    def hear(self) -> FromResolver:
        header = self._stream.read(LENGTH.size)
        if not header:
            raise EOFError
        return unpack(self._stream.read(LENGTH.unpack(header)[0]), FromResolver)  # type: ignore[arg-type]

    def tell(self, *frames: Frame, whole: bool = False) -> dict[str, str]:
        """Returns once they are in force, with what failed."""
        self._number += 1
        self.sock.sendall(b"".join(map(framed, (*frames, Sync(number=self._number, whole=whole)))))
        synced = self.hear()
        assert isinstance(synced, Synced)
        assert synced.number == self._number
        return synced.failed

    def close(self) -> None:
        self._stream.close()
        self.sock.close()


class Machine:
    """Resolvers started by a test, at one socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: list[subprocess.Popen[bytes]] = []
        self.daemons: list[Daemon] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-m", "hivemesh.dns.process", str(self.path), *options])
        self.started.append(process)
        return process

    def daemon(self) -> Daemon:
        self.daemons.append(Daemon(self.path))
        return self.daemons[-1]

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.close()
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def _no_namespaces() -> Iterator[None]:
    yield
    for name in os.listdir(NETNS_DIR):
        sh(f"ip netns delete {name}")


@pytest.fixture
def machine(_no_namespaces: None) -> Iterator[Machine]:
    """For tests of lives and deaths."""
    made = Machine(Path("/run/hivemesh/resolver.sock"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def _served() -> Iterator[Machine]:
    made = Machine(Path("/run/hivemesh-shared/resolver.sock"))
    made.start()
    yield made
    made.end()


@pytest.fixture
def served(_served: Machine, _no_namespaces: None) -> Iterator[Machine]:
    """One that runs, and knows nothing."""
    yield _served
    _served.daemon().tell(whole=True)


def make(*names: str) -> None:
    for name in names:
        sh(f"ip netns add {name} && ip -n {name} link set lo up")


def dig(name: str, *question: str) -> list[str]:
    """The data of the answers; or the status when that is no success; "silence" when nobody answers."""
    command = f"ip netns exec {name} dig @{SERVER[0]} -p {SERVER[1]} +tries=1 +time=3"
    out = sh(f"{command} +noall +comments +answer {' '.join(question)} || [ $? = 9 ]")
    if "status: " not in out:
        return ["silence"]
    status = out.split("status: ")[1].split(",")[0]
    answers = [line.split()[-1] for line in out.splitlines() if line and not line.startswith(";")]
    return answers if status == "NOERROR" else [status]


def connect(name: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(20)
        sock.connect(SERVER)
        return sock

    return inside(f"{NETNS_DIR}/{name}", dial)


@functools.cache
def _query(name: str) -> bytes:
    return dns.message.make_query(name, "A").to_wire()


def query(name: str, ident: int = 1) -> bytes:
    return ident.to_bytes(2, "big") + _query(name)[2:]


def with_length(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def read_stream(sock: socket.socket, count: int) -> list[int]:
    """The ids of so many answers."""
    stream = sock.makefile("rb")
    messages = [stream.read(int.from_bytes(stream.read(2), "big")) for _ in range(count)]
    return [int.from_bytes(message[:2], "big") for message in messages]


def sockets_of(daemon: Daemon) -> int:
    """How many the resolver holds."""
    files = Path(f"/proc/{daemon.greeting.pid}/fd")
    return sum(os.readlink(files / file).startswith("socket:") for file in os.listdir(files))


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- answers --------------------------------------------------------------------------------------------------------


def test_two_sandboxes_see_their_own_networks_only(served: Machine) -> None:
    make("one", "two")
    assert served.daemon().tell(front(), BACK_NAMES, sandbox("one"), sandbox("two", BACK, FRONT), whole=True) == {}
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    assert dig("one", "web") == dig("one", "web.front", "+tcp") == dig("two", "WEB") == ["10.0.1.2"]
    assert dig("one", "web", "AAAA") == ["fd00::2"]
    assert dig("two", "db", "+noedns") == ["10.0.2.2"]
    assert dig("one", "db") == ["SERVFAIL"]  # internal: it may not leave
    assert dig("one", "-x", "10.0.1.3") == ["web.1.abc.front."]
    assert dig("two", "db", "MX") == dig("two", "db", "AAAA") == []
    assert sorted(dig("two", "tasks.web", "+tcp")) == ["10.0.1.3", "10.0.1.4"]
    asking = connect("one")
    firsts = set()
    for _ in range(100):
        asking.send(query("tasks.web"))
        firsts.add(dns.message.from_wire(asking.recv(512)).answer[0][0].to_text())
    assert firsts == {"10.0.1.3", "10.0.1.4"}
    asking.close()


def test_answer_longer_than_the_client_takes_is_asked_again_over_tcp(served: Machine) -> None:
    make("one")
    many = tuple(ipaddress.ip_address(f"10.1.{n // 250}.{n % 250}") for n in range(1000))
    served.daemon().tell(front(many=many), sandbox("one"), whole=True)
    for size in (512, 1232, 4096):
        cut = dig("one", "many", f"+bufsize={size}", "+ignore")
        assert size - 80 < 16 * len(cut) < size
    assert len(dig("one", "many", "+bufsize=512")) == len(dig("one", "many", "+noedns")) == 1000


def test_what_was_told_is_in_force_once_confirmed(served: Machine) -> None:
    make("one", "two")
    daemon = served.daemon()
    daemon.tell(front(), sandbox("one"), sandbox("two"), whole=True)
    asking = connect("one")
    for number in range(1, 30):
        daemon.tell(front(web=ips(f"10.9.0.{number}")))
        asking.send(query("web"))
        (records,) = dns.message.from_wire(asking.recv(512)).answer
        assert records[0].to_text() == f"10.9.0.{number}"
    daemon.tell(Forget(networks=(FRONT,)))
    assert dig("one", "web") == ["SERVFAIL"]
    daemon.tell(BACK_NAMES, sandbox("one", BACK))
    assert (dig("one", "db"), dig("two", "db")) == (["10.0.2.2"], ["SERVFAIL"])
    asking.close()


def test_sandbox_without_its_namespace_is_named_and_served_when_that_comes(served: Machine) -> None:
    make("one")
    daemon = served.daemon()
    failed = daemon.tell(front(), sandbox("one"), sandbox("two"), whole=True)
    assert failed == {"two": f"cannot listen in {NETNS_DIR}/two: No such file or directory"}
    make("taken")
    taken = inside(f"{NETNS_DIR}/taken", lambda: socket.create_server(SERVER))
    sh(f"touch {NETNS_DIR}/two && mount --bind {NETNS_DIR}/taken {NETNS_DIR}/two")
    eventually(lambda: "in use" in daemon.tell().get("two", ""))
    taken.close()
    eventually(lambda: dig("two", "web") == ["10.0.1.2"])
    assert daemon.tell() == {}


def test_forgotten_sandbox_keeps_no_namespace_alive(served: Machine) -> None:
    make("one", "two")
    daemon = served.daemon()
    daemon.tell(front(), sandbox("one"), sandbox("two"), whole=True)
    stream = connect("one", socket.SOCK_STREAM)
    stream.sendall(with_length(query("web")))
    assert read_stream(stream, 1) == [1]

    before = sockets_of(daemon)
    daemon.tell(Forget(sandboxes=("one",)))
    assert sockets_of(daemon) == before - 3  # UDP, TCP, the connection
    assert stream.recv(1) == b""
    stream.close()
    # another namespace under the same name is another one, and what is not named by a whole account is over
    sh("ip netns delete two")
    assert daemon.tell(sandbox("two")) == {}
    make("two")
    daemon.tell(sandbox("two"))
    assert dig("two", "web") == ["10.0.1.2"]
    served.daemon().tell(front(), whole=True)
    assert sockets_of(daemon) == before - 5


# --- TCP --------------------------------------------------------------------------------------------------------------


def test_many_questions_over_one_connection_are_all_answered(served: Machine) -> None:
    make("one")
    served.daemon().tell(front(), sandbox("one"), whole=True)
    stream = connect("one", socket.SOCK_STREAM)
    questions = b"".join(with_length(query("web", ident)) for ident in range(1000))
    for at in range(0, len(questions), 777):  # cut anywhere
        stream.sendall(questions[at : at + 777])
    assert read_stream(stream, 1000) == list(range(1000))
    stream.sendall(with_length(query("web", 7)) + with_length(query("web", 8)))
    stream.shutdown(socket.SHUT_WR)
    assert read_stream(stream, 2) == [7, 8]
    assert stream.recv(1) == b""
    stream.close()


def test_client_that_reads_nothing_is_not_read_further(served: Machine) -> None:
    make("one")
    many = tuple(ipaddress.ip_address(f"10.1.{n // 250}.{n % 250}") for n in range(2000))
    served.daemon().tell(front(many=many), sandbox("one"), whole=True)
    stream = connect("one", socket.SOCK_STREAM)
    questions = b"".join(with_length(query("many", ident)) for ident in range(500))  # answers of 16 MB
    sender = threading.Thread(target=stream.sendall, args=(questions,))
    sender.start()
    assert dig("one", "web") == ["10.0.1.2"]
    assert read_stream(stream, 500) == list(range(500))
    sender.join()
    stream.close()


def test_connections_of_a_sandbox_are_bounded_and_the_silent_give_way(served: Machine) -> None:
    make("one", "two")
    daemon = served.daemon()
    daemon.tell(front(), sandbox("one"), sandbox("two"), whole=True)
    before = sockets_of(daemon)
    silent = [connect("one", socket.SOCK_STREAM) for _ in range(70)]
    assert dig("one", "web", "+tcp") == dig("two", "web", "+tcp") == ["10.0.1.2"]
    assert silent[0].recv(1) == b""
    silent[-1].sendall(with_length(query("web")))
    assert read_stream(silent[-1], 1) == [1]
    assert before < sockets_of(daemon) <= before + 64 + 1  # the one of `two` may be there still
    for sock in silent:
        sock.close()


def test_junk_does_no_harm(served: Machine) -> None:
    make("one")
    served.daemon().tell(front(), sandbox("one"), whole=True)
    asking = connect("one")
    for junk in (b"", b"x", query("web")[:-1], b"\0\1\x81\x80" + query("web")[4:], bytes(60000), b"\xff" * 5000):
        asking.send(junk)
    asking.send(query("web", 77))
    while dns.message.from_wire(asking.recv(512)).id != 77:
        pass
    asking.close()


# --- lives and deaths -------------------------------------------------------------------------------------------------


def test_resolver_goes_on_without_a_daemon_and_listens_to_the_newest(machine: Machine) -> None:
    make("one")
    process = machine.start()
    first = machine.daemon()
    first.tell(front(), sandbox("one"), whole=True)
    silent = machine.daemon()
    assert first.tell() == {}  # one that only looks replaces nobody
    second = machine.daemon()
    second.tell(front(web=ips("10.0.1.9")))
    with pytest.raises(EOFError):
        first.hear()
    second.close()
    silent.close()
    assert dig("one", "web") == ["10.0.1.9"]
    broken = machine.daemon()
    broken.sock.sendall(b"\0\0\0\4junk")
    with pytest.raises(EOFError):
        broken.hear()
    assert dig("one", "web") == ["10.0.1.9"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert list(machine.path.parent.iterdir()) == []


def test_killed_resolver_is_followed_by_one_that_answers_again(machine: Machine) -> None:
    names = [f"box{number}" for number in range(30)]
    make(*names)
    process = machine.start()
    frames = (front(), *map(sandbox, names))
    machine.daemon().tell(*frames, whole=True)
    stream = connect("box0", socket.SOCK_STREAM)
    stream.sendall(with_length(query("web")))
    assert read_stream(stream, 1) == [1]
    process.kill()
    process.wait()
    machine.start()
    assert machine.daemon().tell(*frames, whole=True) == {}
    assert dig("box0", "web", "+tcp") == dig("box29", "web") == ["10.0.1.2"]
    stream.close()


def test_second_resolver_is_turned_away(machine: Machine) -> None:
    machine.start()
    machine.daemon()
    done = subprocess.run(
        [sys.executable, "-m", "hivemesh.dns.process", str(machine.path)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1
    assert (
        done.stderr == f"hivemesh-resolver: a resolver runs at {machine.path} already: --replace takes over from it\n"
    )
    assert machine.daemon().greeting.pid == machine.started[0].pid


def test_handover_under_a_stream_of_questions_loses_none(machine: Machine) -> None:
    make("one", "two")
    processes = [machine.start()]
    machine.daemon().tell(front(), sandbox("one"), sandbox("two"), whole=True)
    stopping = threading.Event()
    lost: list[str] = []
    asked = {"udp": 0, "tcp": 0}

    def ask_by_udp() -> None:
        sock = connect("one")
        while not stopping.is_set():
            idents = range(asked["udp"], asked["udp"] + 20)
            for ident in idents:
                sock.send(query("web", ident % 65536))
            try:
                answers = {int.from_bytes(sock.recv(512)[:2], "big") for _ in idents}
            except TimeoutError:
                lost.append("udp")
                break
            assert answers == {ident % 65536 for ident in idents}
            asked["udp"] += 20
        sock.close()

    def ask_by_tcp() -> None:
        """Over one connection, whichever process serves it; each question comes in two pieces."""
        sock = connect("two", socket.SOCK_STREAM)
        while not stopping.is_set():
            question = with_length(query("tasks.web", asked["tcp"] % 65536))
            sock.sendall(question[:9])
            time.sleep(0.0005)
            sock.sendall(question[9:])
            try:
                assert read_stream(sock, 1) == [asked["tcp"] % 65536]
            except (OSError, AssertionError) as error:
                lost.append(f"tcp: {error!r}")
                break
            asked["tcp"] += 1
        sock.close()

    threads = [threading.Thread(target=ask_by_udp), threading.Thread(target=ask_by_tcp)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        eventually(lambda seen=dict(asked): bool(lost) or all(asked[key] > seen[key] + 20 for key in asked))  # type: ignore[misc]
        processes.append(machine.start("--replace"))
        assert processes[-2].wait(20) == 0
        assert machine.daemon().greeting.pid == processes[-1].pid
    eventually(lambda seen=dict(asked): bool(lost) or all(asked[key] > seen[key] + 20 for key in asked))  # type: ignore[misc]
    stopping.set()
    for thread in threads:
        thread.join()
    assert lost == []
    daemon = machine.daemon()
    daemon.tell(front(web=ips("10.0.1.9")), sandbox("one"), whole=True)
    assert dig("one", "web") == ["10.0.1.9"]


def test_question_asked_on_before_a_handover_is_answered_after_it(machine: Machine) -> None:
    make("one")
    old = machine.start()
    asks = Sandbox(id="one", netns=f"{NETNS_DIR}/one", networks=(FRONT,), nameservers=ips("127.0.0.1"))
    machine.daemon().tell(front(), asks, whole=True)
    server = inside(asks.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.bind(("127.0.0.1", 53))
    server.settimeout(20)
    asking = connect("one")
    asking.send(query("outside", 77))
    message, whom = server.recvfrom(512)
    fresh = machine.start("--replace")
    daemon = machine.daemon()
    while daemon.greeting.pid != fresh.pid:
        daemon = machine.daemon()
    said = dns.message.make_response(dns.message.from_wire(message))
    said.answer.append(dns.rrset.from_text("outside.", 60, "IN", "A", "192.0.2.1"))
    server.sendto(said.to_wire(), whom)
    heard = dns.message.from_wire(asking.recv(512))
    assert (heard.id, heard.answer) == (77, said.answer)
    assert old.wait(20) == 0
    # the new one asks for itself, and holds nothing in the namespace once it is told to forget
    daemon.tell(front(), asks, whole=True)
    before = sockets_of(daemon)
    asking.send(query("outside", 78))
    message, whom = server.recvfrom(512)
    server.sendto(message[:2] + said.to_wire()[2:], whom)
    assert dns.message.from_wire(asking.recv(512)).id == 78
    asking.send(query("outside", 79))
    assert dns.message.from_wire(asking.recv(512)).answer == said.answer  # nobody is asked again
    daemon.tell(Forget(sandboxes=("one",)))
    assert sockets_of(daemon) == before - 2
    asking.close()
    server.close()


def test_handover_that_breaks_off_leaves_the_old_one_serving(machine: Machine) -> None:
    make("one")
    process = machine.start()
    machine.daemon().tell(front(), sandbox("one"), whole=True)
    half = machine.daemon()
    half.sock.sendall(framed(TakeOver()))
    half.sock.recv(100)
    half.close()
    assert dig("one", "web") == dig("one", "web", "+tcp") == ["10.0.1.2"]
    assert process.poll() is None
    fresh = machine.start("--replace")
    assert process.wait(20) == 0
    assert machine.daemon().greeting.pid == fresh.pid
    assert dig("one", "web") == ["10.0.1.2"]


def test_replacing_nobody_starts_afresh(machine: Machine) -> None:
    make("one")
    machine.start("--replace")
    assert machine.daemon().tell(front(), sandbox("one"), whole=True) == {}
    assert dig("one", "web") == ["10.0.1.2"]
