"""Open ports and connections of a namespace, as the kernel lists them."""

import subprocess
import sys
import time

import pytest

from hivemesh.kernel.listening import doors_of, has_callers, has_last_words

pytestmark = pytest.mark.kernel

_OPEN = """
import socket, sys
def listen(family, address, port):
    one = socket.socket(family); one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1) if family == 10 else None
    one.bind((address, port)); one.listen(); return one
def bind(family, address, port):
    one = socket.socket(family, socket.SOCK_DGRAM); one.bind((address, port)); return one
kept = [listen(2, "0.0.0.0", 80), listen(2, "127.0.0.1", 81), listen(2, "127.8.9.10", 82), listen(10, "::", 83),
        listen(10, "::1", 84), bind(2, "0.0.0.0", 53), bind(2, "127.0.0.1", 54), bind(10, "::", 55)]
only_bound = socket.socket(); only_bound.bind(("0.0.0.0", 85))
talking = socket.create_connection(("127.0.0.1", 81))
asking = socket.socket(2, socket.SOCK_DGRAM); asking.connect(("127.0.0.1", 53))
print("open", flush=True)
sys.stdin.read()
"""


def test_doors_are_what_others_can_reach() -> None:
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    with subprocess.Popen(
        [*inside, sys.executable, "-S", "-c", _OPEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert doors_of(process.pid) == {("tcp", 80), ("tcp", 83), ("udp", 53), ("udp", 55)}
        process.communicate("")
    assert doors_of(process.pid) == frozenset()


_CALLED = """
import socket, subprocess, sys
door = socket.create_server(("0.0.0.0", 80))
kept = []
for step in sys.stdin:
    if step == "half\\n":  # the client's last packet of the handshake is lost
        subprocess.run(["nft", "-f", "-"], input="table inet t { chain c { type filter hook input priority 0; "
                       "tcp dport 80 tcp flags & (syn | ack) == ack drop; }; }", text=True, check=True)
        kept.append(socket.create_connection(("127.0.0.1", 80)))
    elif step == "whole\\n":
        subprocess.run(["nft", "delete table inet t"], check=True)
        kept[0].send(b"now")
        kept.append(socket.create_connection(("127.0.0.1", 80)))
    elif step == "accepted\\n":
        kept += [door.accept(), door.accept()]
    print(step, end="", flush=True)
"""


def test_caller_is_at_the_door_until_accepted() -> None:
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    with subprocess.Popen(
        [*inside, sys.executable, "-S", "-c", _CALLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step, called in (("begun", False), ("half", True), ("whole", True), ("accepted", False)):
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{step}\n"
            assert has_callers(process.pid) is called, step
        process.communicate("")
    assert not has_callers(process.pid)


_CLOSED = """
import socket, subprocess, sys
door = socket.create_server(("0.0.0.0", 80))
caller = socket.create_connection(("127.0.0.1", 80))
served, _ = door.accept()
for step in sys.stdin:
    if step == "said\\n":  # what the caller's side answers is lost
        subprocess.run(["nft", "-f", "-"], input="table inet t { chain c { type filter hook input priority 0; "
                       "tcp dport 80 drop; }; }", text=True, check=True)
        served.send(b"the last words")
        served.close()
    elif step == "heard\\n":
        subprocess.run(["nft", "delete table inet t"], check=True)
    print(step, end="", flush=True)
"""


def test_last_words_are_on_their_way_until_acknowledged() -> None:
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    with subprocess.Popen(
        [*inside, sys.executable, "-S", "-c", _CLOSED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        namespace = f"/proc/{process.pid}/ns/net"
        for step, unheard in (("open", False), ("said", True), ("heard", False)):
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{step}\n"
            until = time.monotonic() + 10  # sent again, at longer and longer intervals
            while has_last_words(namespace) is not unheard and time.monotonic() < until:
                time.sleep(0.02)
            assert has_last_words(namespace) is unheard, step
        process.communicate("")
    assert not has_last_words(namespace)
