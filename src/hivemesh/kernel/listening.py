"""Open ports and connections in a container's network namespace: the kernel's tables say, nothing is sent to anybody.

The tables are text, a line per socket: `sl local_address rem_address st …`, addresses in hexadecimal, each 32-bit word
in the machine's byte order (proc_net_tcp in the kernel's documentation).
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from hivemesh.kernel.sockets import inside

Door = tuple[str, int]
"""A protocol ("tcp", "udp") and a port."""

_TABLES = (("tcp", "tcp", "0A"), ("tcp", "tcp6", "0A"), ("udp", "udp", "07"), ("udp", "udp6", "07"))
"""Protocol, its table, and the state of a socket that anybody may talk to (include/net/tcp_states.h): TCP_LISTEN, and
TCP_CLOSE for a UDP socket without a peer."""


def doors_of(pid: int) -> frozenset[Door]:
    """What other machines could reach in the namespace of `pid`: not what listens on the loopback alone.

    Empty when the process has ended.
    """
    return _doors(str(pid))


def doors_in(namespace: str) -> frozenset[Door]:
    """The same for the namespace at that path. Raises `FileNotFoundError` when there is none."""
    return inside(namespace, lambda: _doors("thread-self"))


def _doors(process: str) -> frozenset[Door]:
    found: set[Door] = set()
    for protocol, table, state in _TABLES:
        with contextlib.suppress(OSError):  # no IPv6 here, or it has just ended
            text = Path(f"/proc/{process}/net/{table}").read_text()
            found.update((protocol, port) for port in _open_ports(text, state))
    return frozenset(found)


def has_callers(pid: int) -> bool:
    """Somebody is at the door in the namespace of `pid`: a TCP handshake is under way, or is done and the connection
    not accepted yet. A server that closes its door now would cut them off.
    """
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            if _CALLERS.search(Path(f"/proc/{pid}/net/{table}").read_text()):
                return True
    return False


_CALLERS = re.compile(r" (?:03 |0A [0-9A-F]{8}:(?!0{8} ))")
"""TCP_SYN_RECV, or TCP_LISTEN with a receive queue, which counts the connections that wait to be accepted."""


def has_last_words(namespace: str) -> bool:
    """A TCP connection was closed in the namespace at that path, and its last bytes have not arrived at the client yet:
    they would be lost with the namespace. False when that is gone.
    """
    try:
        return inside(namespace, lambda: any(map(_has_closing, ("tcp", "tcp6"))))
    except OSError:
        return False


def _has_closing(table: str) -> bool:
    return bool(_CLOSING.search(Path(f"/proc/thread-self/net/{table}").read_text()))


_CLOSING = re.compile(r" (?:04|09|0B) [0-9A-F]{8}:")
"""TCP_FIN_WAIT1, TCP_LAST_ACK and TCP_CLOSING: our end of the stream is not acknowledged."""


def _open_ports(table: str, state: str) -> Iterator[int]:
    for line in table.splitlines()[1:]:
        _, local, _, now, *_ = line.split(maxsplit=4)
        if now == state:
            address, _, port = local.partition(":")
            if not _is_loopback(address):
                yield int(port, 16)


def _is_loopback(address: str) -> bool:
    """127.0.0.0/8, ::1, and the former inside the latter's family."""
    words = [bytes.fromhex(address[at : at + 8]) for at in range(0, len(address), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    plain = b"".join(words)
    if len(plain) == 4 or plain.startswith(bytes(10) + b"\xff\xff"):
        return plain[-4] == 127
    return plain == bytes(15) + b"\x01"
