"""Plain HTTP over a unix socket: how the lab, as any outsider would, speaks to a node's Docker API."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from hivemesh.model.errors import HivemeshError


class Refused(HivemeshError):
    """The node's API answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("node", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(socket_path: Path, method: str, path: str, body: object = None, *, timeout: float = 60) -> Any:
    """The decoded answer (JSON, else text, else None). Raises `Refused`, or OSError when nobody answers.

    `timeout` is seconds for each step of the exchange.
    """
    connection = UnixConnection(socket_path, timeout)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        raw = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        if answer.status >= 400:
            message = json.loads(raw)["message"] if is_json and raw else raw.decode(errors="replace")
            raise Refused(answer.status, message)
        if not raw:
            return None
        return json.loads(raw) if is_json else raw.decode()
    finally:
        connection.close()
