"""A real etcd for tests: one process on loopback, gone at the end."""

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def running_etcd(directory: Path, *options: str) -> Iterator[str]:
    """The URL of its clients' port; `options` are more of its own."""
    client, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["etcd", "--name", "one", "--data-dir", str(directory / "data"), "--logger", "zap", "--log-level", "warn",
             "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
             "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}",
             "--max-txn-ops", "100000", "--max-request-bytes", str(32 << 20), *options],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        _await_health(client, process, log)
        yield client
    finally:
        process.kill()
        process.wait()


def _await_health(client: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"{client}/health", timeout=1) as answer:
                if b"true" in answer.read():
                    return
        except (urllib.error.URLError, OSError):
            pass
        if process.poll() is not None or time.monotonic() > until:
            raise AssertionError(f"etcd does not start: {log.read_text()}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
