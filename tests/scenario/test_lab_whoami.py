"""The demo image's server, as clients see it."""

import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hivemesh.lab.image import build_program
from hivemesh.lab.topology import Places

pytestmark = pytest.mark.scenario


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program(Places(disk=tmp_path_factory.mktemp("whoami")))


@pytest.fixture
def port(program: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    with subprocess.Popen([program, str(number)], env={"WHOAMI_NAME": "web.1"}) as server:
        try:
            _await_listening(number)
            yield number
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(1) == 0, "it ends at once when asked"


def _await_listening(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.01)
    pytest.fail("the server does not listen")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_any_path_is_answered_with_who_asked_and_who_answers(port: int, host: str) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.request("GET", "/some/path", headers={"X-Mine": "yes"})
    text = connection.getresponse().read().decode()
    own = connection.sock.getsockname()
    connection.close()
    assert "Hostname: web.1\n" in text
    assert (f"RemoteAddr: [{own[0]}]:{own[1]}\n" if ":" in host else f"RemoteAddr: {own[0]}:{own[1]}\n") in text
    assert "GET /some/path HTTP/1.1\n" in text
    assert "X-Mine: yes\n" in text


def test_json_says_the_same(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/json", headers={"X-Quote": 'a"b\\c'})
    facts = json.loads(connection.getresponse().read())
    assert facts["client"] == dict(zip(("address", "port"), connection.sock.getsockname(), strict=True))
    assert (facts["hostname"], facts["headers"]["X-Quote"]) == ("web.1", 'a"b\\c')
    connection.close()


def test_one_connection_carries_many_requests_with_bodies(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("POST", "/", body=b"x" * 100_000)
    connection.getresponse().read()
    first = connection.sock.getsockname()
    connection.request("GET", "/bytes/1000000")
    assert len(connection.getresponse().read()) == 1_000_000
    connection.request("HEAD", "/")
    assert connection.getresponse().read() == b""
    assert connection.sock.getsockname() == first
    connection.close()


def test_request_cut_into_pieces_is_answered_once(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        for piece in (b"GET / HT", b"TP/1.1\r\nConnection: cl", b"ose\r\n\r", b"\n"):
            client.sendall(piece)
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize(("family", "asked"), [(socket.AF_INET, "127.0.0.7"), (socket.AF_INET6, "::1")])
def test_datagram_is_answered_from_the_address_that_was_asked(port: int, family: int, asked: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"hello", (asked, port))
        answer, source = client.recvfrom(65535)
        assert source[:2] == (asked, port)
    assert answer.startswith(b"Hostname: web.1\n")
    assert answer.endswith(b"\nhello")


def test_hundred_clients_at_once_are_all_answered(port: int) -> None:
    def ask(_: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            own = f"RemoteAddr: 127.0.0.1:{client.getsockname()[1]}\n"
            answer = b""
            while piece := client.recv(4096):
                answer += piece
            return own in answer.decode()

    with ThreadPoolExecutor(100) as pool:
        assert all(pool.map(ask, range(300)))


def _await_signals_taken(pid: int) -> None:
    """Until the process has no signal left to notice: what is asked at the same time may still be answered first."""
    until = time.monotonic() + 5
    while re.search(r"^ShdPnd:\t0+$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is None:
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture
def stopped(program: Path) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """A server that a test tells to stop; a fixture's end waits for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    with subprocess.Popen([program, str(number)]) as server:
        try:
            _await_listening(number)
            yield number, server
        finally:
            server.kill()


def test_server_that_is_told_to_stop_answers_once_more_and_says_so(
    stopped: tuple[int, "subprocess.Popen[bytes]"],
) -> None:
    port, server = stopped
    open_ = [http.client.HTTPConnection("127.0.0.1", port, timeout=5) for _ in range(3)]
    for connection in open_:
        connection.request("GET", "/")
        assert connection.getresponse().read()
    server.send_signal(signal.SIGTERM)
    _await_signals_taken(server.pid)
    for connection in open_[1:]:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.read()
        assert response.getheader("Connection") == "close"
    assert server.wait(5) == 0, "the one that asks nothing does not hold it"
    assert open_[0].sock.recv(1) == b""
    for connection in open_:
        connection.close()
