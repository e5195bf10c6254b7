"""Who asks all the time while a storm rages: connections from outside, names and virtual addresses from inside.

Every answer is kept with its moments; `witness.py` judges them when all is known.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hivemesh.lab.machine import Machine

_ASKER = """
import json, os, select, socket, struct, sys, time
kind, place, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
labels = b"".join(bytes([len(part)]) + part.encode() for part in place.split("."))
question = struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!HH", 1, 1)

def names():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(1)
        asker.connect(("127.0.0.11", 53))
        asker.send(os.urandom(2) + question)
        answer = asker.recv(4096)
    count = struct.unpack_from("!H", answer, 6)[0]
    starts = range(len(question) + 14, len(question) + 14 + 16 * count, 16)
    return [socket.inet_ntoa(answer[at:at + 4]) for at in starts]

def connection():
    global port
    host, _, number = place.rpartition(":")
    with socket.socket(socket.AF_INET) as asker:
        asker.settimeout(3)
        try:
            asker.connect((host, int(number)))
        finally:
            port = asker.getsockname()[1]
        asker.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        reply = b"".join(iter(lambda: asker.recv(65536), b""))
    lines = dict(line.partition(": ")[::2] for line in reply.decode().splitlines())
    if "Hostname" not in lines:
        raise OSError("an empty answer")
    return [lines["Hostname"]]

ask = names if kind == "names" else connection
while not select.select([sys.stdin], [], [], pause)[0]:
    began, found, error, port = time.monotonic(), [], "", 0
    try:
        found = ask()
    except OSError as failure:
        error = f"{type(failure).__name__} {failure}"
    print(json.dumps([began, time.monotonic(), found, error, port]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and its answer: a name's addresses, or the host name of who took a connection. Times are of the
    monotonic clock; what failed has an `error`."""

    via: str
    kind: str
    began: float
    ended: float
    found: tuple[str, ...]
    error: str

    def __str__(self) -> str:
        said = self.error or ", ".join(self.found) or "nothing"
        return f"{self.began:.2f}-{self.ended:.2f} {self.kind} via {self.via}: {said}"


@dataclass(slots=True)
class Client:
    """Asks one thing, from one machine, without a pause that counts. What it was told is in a file meanwhile."""

    machine: Machine
    kind: str
    via: str
    place: str
    log: Path
    enter: Sequence[str] = ()
    pause: float = 0.03
    _process: "subprocess.Popen[bytes] | None" = field(default=None)

    def start(self) -> None:
        words = [*self.enter, sys.executable, "-S", "-c", _ASKER, self.kind, self.place, str(self.pause)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self.machine.command(words), stdin=subprocess.PIPE, stdout=log)

    def finish(self) -> list[Asked]:
        """All it has asked."""
        assert self._process is not None
        self._process.communicate(timeout=60)
        asked = []
        for line in self.log.read_text().splitlines():
            began, ended, found, error, _ = json.loads(line)  # its own port is for whoever reads the file
            asked.append(Asked(self.via, self.kind, began, ended, tuple(found), error))
        return asked
