"""Pure: a message and what a sandbox can know, in; the answer's bytes, silence, or `FORWARD` out.

Most questions are asked again and again, so answers are kept ready under the bytes of the whole query but its id. They
are made anew when a table changes, all of them: whoever asks is never told anything of an older one.
"""

from typing import NamedTuple

from hivemesh.dns.tables import Scope
from hivemesh.wire.dns import (
    AAAA,
    ANY,
    BADVERS,
    HEADER,
    IN,
    MOST_TCP,
    NOT_FOR_LOOKUP,
    PTR,
    REFUSED,
    SERVFAIL,
    A,
    BadQuery,
    Query,
    address_records,
    encode_name,
    name_record,
    parse_query,
    refusal,
    reply,
    reply_head,
    reply_opt,
    reverse_address,
)

TTL = 5
"""Seconds. Docker says 600, but a container that keeps an address that long talks to tasks long gone."""
READY_BYTES = 128 * 1024
"""Ready answers of one scope, with their questions; with more, all are dropped."""
_ENTRY_BYTES = 200  # what an entry takes beside its bytes
_LONGEST_KEY = 300  # a name of 255 bytes and a plain OPT record; what is longer is odd and seldom asked again


class Rotating(NamedTuple):
    """An answer with several addresses, each of which comes first equally often: most clients take the first."""

    head: bytes
    twice: bytes  # all records, and again: any run of them is a rotation
    size: int  # of one record
    choices: int  # how many records there are
    length: int  # of the records that fit
    opt: bytes

    def tail(self, luck: float) -> bytes:
        """The answer without id; `luck` in [0, 1) says which comes first."""
        start = int(luck * self.choices) * self.size
        return self.head + self.twice[start : start + self.length] + self.opt


Prepared = bytes | Rotating
"""An answer without its id."""
FORWARD = b""
"""Nobody here knows: ask on."""


class Answers:
    """The ready answers of a scope, by `query[2:]`: `ready` those over UDP, read on the hot path, and `ready_tcp`."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.ready: dict[bytes, Prepared] = {}
        self.ready_tcp: dict[bytes, Prepared] = {}
        self._bytes = 0

    def prepare(self, message: bytes, *, tcp: bool = False) -> Prepared | None:
        """The answer, remembered; None: say nothing."""
        prepared = answer(message, self.scope, tcp=tcp)
        if prepared is not None and len(message) <= _LONGEST_KEY:
            size = len(message) + _ENTRY_BYTES
            size += len(prepared) if isinstance(prepared, bytes) else len(prepared.head) + len(prepared.twice)
            if self._bytes + size > READY_BYTES:
                self.ready.clear()
                self.ready_tcp.clear()
                self._bytes = 0
            self._bytes += size
            (self.ready_tcp if tcp else self.ready)[message[2:]] = prepared
        return prepared


def answer(message: bytes, scope: Scope, *, tcp: bool = False) -> Prepared | None:
    """What to say to `message`; None is nothing at all, because it is not even a query."""
    try:
        query = parse_query(message)
    except BadQuery as bad:
        return None if bad.rcode is None else refusal(message, bad.rcode)
    if query.edns is not None and query.edns.version != 0:
        return reply(query, BADVERS)
    if query.klass != IN or query.type in NOT_FOR_LOOKUP:
        return reply(query, REFUSED)
    labels = query.labels()
    if query.type == PTR and (found := _reverse(labels, scope)) is not None:
        return reply(query, records=name_record(found, TTL), count=1)
    # a dot within a label would look like one between labels; a label of 46 bytes begins with a dot's byte
    dotted = b"." in query.question and any(b"." in label for label in labels)
    known = None if dotted else scope.addresses(_text(labels))
    if known is not None:
        packed = {version: [a.packed for a in known if a.version == version] for version in (4, 6)}
        wanted = {A: packed[4], AAAA: packed[6], ANY: packed[4] or packed[6]}.get(query.type, [])
        return _addresses(query, wanted, MOST_TCP if tcp else query.udp_limit)
    if scope.ndots and len(labels) == 1 and query.type in (A, AAAA):
        return reply(query)
    return FORWARD if scope.forward else reply(query, SERVFAIL)


def failure(message: bytes) -> bytes:
    """What to say, without id, when a question that `answer` forwards cannot be asked on."""
    return reply(parse_query(message), SERVFAIL)


def _text(labels: list[bytes]) -> str:
    return b".".join(labels).lower().decode("utf-8", "surrogateescape")


def _reverse(labels: list[bytes], scope: Scope) -> bytes | None:
    packed = reverse_address(labels)
    name = None if packed is None else scope.name_of(packed)
    if name is None:
        return None
    try:
        return encode_name(name)
    except ValueError:  # a container may have a name that is none in DNS
        return None


def _addresses(query: Query, packed: list[bytes], limit: int) -> Prepared:
    if not packed:
        return reply(query)
    records = address_records(packed, TTL)
    size = len(records) // len(packed)
    opt = reply_opt(query)
    room = limit - HEADER.size - len(query.question) - len(opt)
    fits = min(len(packed), room // size)
    if len(packed) == 1 and fits:
        return reply(query, records=records, count=1)
    head = reply_head(query, count=fits, truncated=fits < len(packed))
    return Rotating(head, records * 2, size, len(packed), fits * size, opt)
