"""Ask several addresses all the time who answers; print each answerer's first and last moment. Run on the client.

probe.py SECONDS[/PATIENCE] HOST:PORT... prints JSON: {"host:port": {"answerer": [first, last]}, ...} in unix seconds.
Nobody is waited for longer than PATIENCE seconds, which is 1 if not said.
"""

import json
import socket
import sys
import time

PAUSE = 0.002


def ask(host: str, port: int, patience: float) -> str:
    """The host name of whoever answers a new connection; empty when nobody does."""
    try:
        with socket.create_connection((host, port), timeout=patience) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
            data = b""
            while part := connection.recv(4096):
                data += part
    except OSError:
        return ""
    for line in data.decode(errors="replace").splitlines():
        if line.lower().startswith("hostname:"):
            return line.split(":", 1)[1].strip()
    return ""


def main() -> None:
    seconds, _, patience = sys.argv[1].partition("/")
    until = time.time() + float(seconds)
    targets = [target.rsplit(":", 1) for target in sys.argv[2:]]
    seen: dict[str, dict[str, list[float]]] = {":".join(target): {} for target in targets}
    while time.time() < until:
        for host, port in targets:
            who = ask(host, int(port), float(patience or 1))
            now = time.time()
            seen[f"{host}:{port}"].setdefault(who, [now, now])[1] = now
        time.sleep(PAUSE)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
