"""Ask names and connect to what they stand for, in several namespaces at once; say when each answer was first seen.

sightings.py NAME VIP NETNS... asks each namespace's resolver for `tasks.NAME`, and who answers at VIP, all the time.
For each line on stdin it prints, as JSON, what has been seen since the one before:
{"path of the namespace": {"name" or "backend": {"address": moment}}}, moments in seconds since the machine's start.
"""

import json
import socket
import struct
import sys
import threading
import time

from hivemesh.kernel.sockets import inside

PAUSE = 0.004
TIMEOUT = 1.0
RESOLVER = ("127.0.0.11", 53)

Seen = dict[str, dict[str, float]]


def question(name: str) -> bytes:
    """An A question; the id is put before it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def addresses(answer: bytes, asked: int) -> list[str]:
    """The addresses of a plain answer; `asked` is the length of the question with its header.

    Each record names what was asked in two bytes, and then has ten before its four bytes of address.
    """
    (count,) = struct.unpack_from("!H", answer, 6)
    starts = range(asked + 12, asked + 12 + 16 * count, 16)
    return [socket.inet_ntoa(answer[at : at + 4]) for at in starts if answer[at - 10 : at - 8] == b"\0\1"]


def who_answers(address: str) -> list[str]:
    """The address of the task that takes a new connection, as itself says; none when nobody does."""
    try:
        with socket.create_connection((address, 80), timeout=TIMEOUT) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    except OSError:
        return []
    return [line.split()[1].rpartition(":")[0] for line in text.splitlines() if line.startswith("LocalAddr:")]


def watch(name: str, vip: str, seen: Seen) -> None:
    """Never returns; runs inside the namespace."""
    asked = question(f"tasks.{name}")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    sock.connect(RESOLVER)
    number = 0
    while True:
        number = (number + 1) % 65536
        try:
            sock.send(struct.pack("!H", number) + asked)
            while (answer := sock.recv(4096))[:2] != struct.pack("!H", number):
                pass
            note(seen, "name", addresses(answer, 2 + len(asked)))
        except OSError:
            pass
        note(seen, "backend", who_answers(vip))
        time.sleep(PAUSE)


def note(seen: Seen, what: str, found: list[str]) -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for address in found:
        seen[what].setdefault(address, now)


def main() -> None:
    name, vip, *namespaces = sys.argv[1:]
    everything: dict[str, Seen] = {path: {"name": {}, "backend": {}} for path in namespaces}
    for path, seen in everything.items():
        work = threading.Thread(target=inside, args=(path, lambda seen=seen: watch(name, vip, seen)), daemon=True)
        work.start()
    for _ in sys.stdin:
        said = {path: {what: dict(found) for what, found in seen.items()} for path, seen in everything.items()}
        print(json.dumps(said), flush=True)
        for seen in everything.values():
            for found in seen.values():
                found.clear()


if __name__ == "__main__":
    main()
