"""Names outlive the processes that serve them; connections outlive the wish to end their task."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from names_asked import IMAGE, SLEEP, Asker, askers, network, service, vips
from outside import cli, eventually, resolver_of, tasks_of

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario


_ASK_OFTEN = """
import socket, sys, time
import dns.message
query = dns.message.make_query(sys.argv[1], "A").to_wire()
def answered():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.05)
        asker.sendto(query, ("127.0.0.11", 53))
        try:
            return bool(dns.message.from_wire(asker.recv(4096)).answer)
        except TimeoutError:
            return False
assert answered()
print("answered", flush=True)
sys.stdin.readline()
killed = time.monotonic()
while not answered():
    assert time.monotonic() < killed + 10, "no answer for 10 s"
print(time.monotonic() - killed)
"""


def test_names_survive_the_daemon_and_soon_the_resolver(lab: Lab, tmp_path: Path) -> None:
    network(lab, "mynet")
    service(lab, "web", "--network", "mynet", replicas=2)
    service(lab, "test", "--network", "mynet", command=SLEEP)
    webs, (test,) = askers(lab, "web", 2), askers(lab, "test")
    questions = tmp_path / "questions"
    questions.write_text("web A\ntasks.web A\ntest A\n")
    served = resolver_of(test.node)
    eventually(lambda: _known(test, webs))

    command = ["ip", "netns", "exec", test.task.id[:12], "dnsperf", "-s", "127.0.0.11", "-d", str(questions),
               "-l", "6", "-Q", "500", "-t", "1"]  # fmt: skip
    with subprocess.Popen(test.node.command(command), stdout=subprocess.PIPE, text=True) as asking:
        for kill in (True, False):
            lab.restart_daemon(test.node.name, kill=kill)
        out, _ = asking.communicate(timeout=30)
    assert re.search(r"Queries lost:\s+0 ", out), out
    assert re.search(r"Response codes:\s+NOERROR \d+ \(100.00%\)", out), out
    assert resolver_of(test.node) == served
    lab.await_ready()

    command = ["ip", "netns", "exec", test.task.id[:12], sys.executable, "-c", _ASK_OFTEN, "tasks.web"]
    with subprocess.Popen(
        test.node.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "answered\n"
        os.kill(served, signal.SIGKILL)
        out, _ = asking.communicate("killed\n", timeout=20)
    assert asking.returncode == 0
    print(f"{float(out):.2f} s without an answer")
    assert resolver_of(test.node) != served
    assert test.names("tasks.web") == {address for web in webs for address in web.task.addresses}


_HOLD = """
import socket, sys, time
held = [socket.create_connection((sys.argv[1], 80), timeout=3) for _ in range(4)]
def ask(one):
    one.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    reply = b""
    while b"GET / HTTP/1.1" not in reply:
        piece = one.recv(65536)
        assert piece, "closed"
        reply += piece
    return reply.split(b"Hostname: ")[1].split()[0].decode()
print(*map(ask, held), flush=True)
for line in sys.stdin:
    print(*map(ask, held), flush=True)
"""


def test_task_that_drains_keeps_its_connections_and_gets_no_new_ones(lab: Lab) -> None:
    """It takes no notice of its signal, so that the whole grace period passes."""
    mynet = network(lab, "mynet")
    service(lab, "web", "--network", "mynet", "--stop-grace-period", "4s", replicas=2,
            command=(IMAGE, "sh", "-c", "trap '' TERM; /bin/whoami & wait; while :; do sleep 1; done"))  # fmt: skip
    service(lab, "test", "--network", "mynet", command=SLEEP)
    webs, (test,) = askers(lab, "web", 2), askers(lab, "test")
    (vip,) = vips(lab, "web", mynet)
    eventually(lambda: _both_answer(test, vip))
    command = ["ip", "netns", "exec", test.task.id[:12], sys.executable, "-S", "-c", _HOLD, vip]
    with subprocess.Popen(
        test.node.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holding:
        assert holding.stdin is not None
        assert holding.stdout is not None
        before = holding.stdout.readline().split()
        assert len(set(before)) == 2
        cli(lab.nodes[0], "docker", "service", "scale", "--detach", "web=1")
        (stays,) = [task for task in tasks_of(lab, "web") if task.desired == "running"]
        eventually(lambda: _named(test, stays.addresses))
        assert {answer.host for answer in test.curl(vip, 4)} == {stays.host}
        assert [task.state for task in tasks_of(lab, "web") if task.id != stays.id] == ["running"]
        holding.stdin.write("again\n")
        holding.stdin.flush()
        assert holding.stdout.readline().split() == before, "established connections live"
        holding.stdin.close()
    assert {web.task.host for web in webs} == set(before)


def _known(test: Asker, webs: list[Asker]) -> None:
    assert test.names("tasks.web") == {address for web in webs for address in web.task.addresses}
    assert test.names("web")
    assert test.names("test")


def _both_answer(test: Asker, vip: str) -> None:
    code, out = test.inside("curl", "-s", "-m", "1", f"http://{vip}/", f"http://{vip}/")
    assert code == 0
    assert out.count("Hostname:") == 2


def _named(test: Asker, addresses: frozenset[str]) -> None:
    assert test.names("tasks.web") == addresses
