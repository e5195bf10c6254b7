"""Frames between the daemon and `hivemesh-resolver`, MessagePack with a length before each, over a unix socket.

The daemon sends what there is, piece by piece, and `Sync` with a number; the resolver answers `Synced` with the same
number once every question from then on is answered accordingly. Both directions may carry sockets (SCM_RIGHTS).
"""

import struct

import msgspec

from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID
from hivemesh.wire.codec import pack

RESOLVER_ADDRESS = "127.0.0.11"
"""Where containers ask (Docker's number)."""
RESOLVER_PORT = 53053
"""Where the resolver really listens in each sandbox; rules in the sandbox turn port 53 of its address into this one, so
that a name server in a container can have port 53 for itself. Outgoing connections never get a port that is bound."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One message."""


class Names(Frame, frozen=True, kw_only=True, tag="names"):
    """All names of one network, replacing what was known of it. Names are in lower case, without a final dot."""

    network: NetworkID
    name: str  # the network's own: `web.mynet` asks for `web` here only
    addresses: dict[str, tuple[Address, ...]]
    reverse: dict[Address, str]  # the primary name, without the network


class Renames(Frame, frozen=True, kw_only=True, tag="renames"):
    """What changed among the names of a network whose `Names` went over this connection before."""

    network: NetworkID
    addresses: dict[str, tuple[Address, ...]]  # new or changed
    reverse: dict[Address, str]
    gone: tuple[str, ...]
    gone_reverse: tuple[Address, ...]


class Sandbox(Frame, frozen=True, kw_only=True, tag="sandbox"):
    """A sandbox that asks, replacing what was known of it."""

    id: str
    netns: str  # path of its namespace
    networks: tuple[NetworkID, ...]  # in the order in which they are looked at
    nameservers: tuple[Address, ...] = ()  # the container's own, asked from inside its namespace; none: the node's
    forward: bool = True  # False when all its networks are internal: questions never leave
    ndots: bool = False  # the user set ndots > 0: an unknown name of one label is not forwarded (Docker)


class Forget(Frame, frozen=True, kw_only=True, tag="forget"):
    """Networks and sandboxes that are gone; the sockets of these sandboxes are closed before the next `Synced`."""

    networks: tuple[NetworkID, ...] = ()
    sandboxes: tuple[str, ...] = ()


class Sync(Frame, frozen=True, kw_only=True, tag="sync"):
    """Everything up to here. `whole`: this connection has sent all there is; what it did not name is forgotten."""

    number: int
    whole: bool = False


class TakeOver(Frame, frozen=True, kw_only=True, tag="take-over"):
    """From a new resolver to the one it replaces: give me all you have. Answered by `Names`, `Moved` and `AllMoved`."""


class Taken(Frame, frozen=True, kw_only=True, tag="taken"):
    """The new resolver has all of it and answers from now on; without this word the old one would carry on."""


ToResolver = Names | Renames | Sandbox | Forget | Sync | TakeOver | Taken


class Greeting(Frame, frozen=True, kw_only=True, tag="greeting"):
    """The resolver's first word. A daemon of another version replaces it without losing a question."""

    version: str
    pid: int


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Since the resolver began: questions by transport, those that others left unanswered, and how long others took:
    a histogram's buckets (`meters.FAST`) and the sum in seconds."""

    udp: int = 0
    tcp: int = 0
    unanswered: int = 0
    buckets: tuple[int, ...] = ()
    seconds: float = 0.0


class Synced(Frame, frozen=True, kw_only=True, tag="synced"):
    """`failed` names the sandboxes that cannot ask, each with why."""

    number: int
    failed: dict[str, str] = {}
    counted: Counted = Counted()


class Moved(Frame, frozen=True, kw_only=True, tag="moved"):
    """A sandbox changes hands. With it come its sockets: UDP, the listening one, then one for each of `unread`."""

    sandbox: Sandbox
    unread: tuple[bytes, ...] = ()  # of each connection that goes along, what was read of a question not yet complete


class AllMoved(Frame, frozen=True, kw_only=True, tag="all-moved"):
    """That was all. With it comes the lock that keeps a second resolver away."""


FromResolver = Greeting | Synced
ToSuccessor = Greeting | Names | Moved | AllMoved

LENGTH = struct.Struct("!I")
"""Before each frame: how many bytes it has."""
MAX_FRAME = 64 * 1024 * 1024
"""Bytes of the largest frame either side accepts: the names of some 500,000 tasks."""


def framed(frame: Frame) -> bytes:
    """As it goes over the socket."""
    packed = pack(frame)
    return LENGTH.pack(len(packed)) + packed
