"""Open ports of a process's namespace, as the kernel lists them."""

import subprocess
import sys

import pytest

from hivemesh.kernel.listening import doors_of

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
