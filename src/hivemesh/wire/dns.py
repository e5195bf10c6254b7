"""DNS messages as bytes (RFC 1035, RFC 6891): the one question of a query read, a reply put together. No sockets.

Replies come without their first two bytes, the query's id: queries that differ in nothing else share a reply.
"""

import struct

import msgspec

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
"""Types of records (IANA, DNS parameters)."""
NOT_FOR_LOOKUP = frozenset(range(249, 255))
"""TKEY, TSIG, IXFR, AXFR, MAILB, MAILA: no types of records a resolver looks up (RFC 6895, 3.1)."""
IN = 1
NOERROR, FORMERR, SERVFAIL, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 4, 5, 16
"""What a reply says (RCODE); BADVERS needs EDNS."""

QR, TC, RD, RA, CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0010
_OPCODE = 0x7800
_DO = 0x8000
HEADER = struct.Struct("!HHHHHH")  # id, flags, then how many questions, answers, authority and additional records
_REST = struct.Struct("!HHHHH")
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of data

MAX_LABEL, MAX_NAME = 63, 255  # RFC 1035, 2.3.4
PLAIN_UDP = 512
"""Bytes of a reply over UDP to who does not say more (RFC 1035, 4.2.1)."""
MOST_UDP = 4096
"""The most we send, whatever a client says; the way is a loopback device, so nothing is split before 64 KiB."""
MOST_TCP = 65535
MOST_QUERY = 4096
"""Bytes of a query we read; a name and every option in use take a few hundred."""
_AT_QUESTION = b"\xc0\x0c"  # a pointer to the name at byte 12: the question's


class BadQuery(ValueError):
    """No question we could answer; `rcode` is what to say, None: nothing, for it is no query at all."""

    def __init__(self, rcode: int | None, what: str) -> None:
        super().__init__(what)
        self.rcode = rcode


class Edns(msgspec.Struct, frozen=True, gc=False):
    """What the OPT record of a query says."""

    payload: int  # bytes of UDP the client takes
    version: int
    wants_dnssec: bool


class Query(msgspec.Struct, frozen=True, gc=False):
    """A question. `question` is its section as asked: name, type, class."""

    flags: int
    question: bytes
    type: int
    klass: int
    edns: Edns | None

    def labels(self) -> list[bytes]:
        """Of the name, as asked; none for the root."""
        found, at, question = [], 0, self.question
        while length := question[at]:
            found.append(question[at + 1 : at + 1 + length])
            at += 1 + length
        return found

    @property
    def udp_limit(self) -> int:
        """Bytes a reply over UDP may have."""
        return PLAIN_UDP if self.edns is None else min(max(self.edns.payload, PLAIN_UDP), MOST_UDP)


def parse_query(message: bytes) -> Query:
    """Raises `BadQuery` for what is no query, or one that is malformed or asks for more than a question.

    Names in questions may not be compressed: there is nothing before them that a pointer could lead to.
    """
    size = len(message)
    if size < HEADER.size:
        raise BadQuery(None, "shorter than a header")
    _, flags, questions, answers, authorities, additional = HEADER.unpack_from(message)
    if flags & QR:
        raise BadQuery(None, "a reply")
    if flags & _OPCODE:
        raise BadQuery(NOTIMP, "not a standard query")
    if size > MOST_QUERY:
        raise BadQuery(FORMERR, "too long for a query")
    if questions != 1 or answers or authorities:
        raise BadQuery(FORMERR, "not exactly one question")
    at = HEADER.size
    while at < size and (length := message[at]):
        at += 1 + length
        if length > MAX_LABEL or at >= HEADER.size + MAX_NAME:
            raise BadQuery(FORMERR, "a name too long, or with a pointer")
    end = at + 5
    if end > size:
        raise BadQuery(FORMERR, "a question cut off")
    kind, klass = _TYPE_CLASS.unpack_from(message, at + 1)
    edns = _parse_additional(message, end, additional) if additional else None
    if not additional and end != size:
        raise BadQuery(FORMERR, "bytes after the end")
    return Query(flags, message[HEADER.size : end], kind, klass, edns)


def _parse_additional(message: bytes, at: int, count: int) -> Edns | None:
    """Each record takes 11 bytes or more, so however many are announced, the end comes first."""
    size, edns = len(message), None
    for _ in range(count):
        start = at
        while at < size and 0 < message[at] <= MAX_LABEL:
            at += 1 + message[at]
        # a pointer is stepped over, not followed: only OPT matters here, and its owner is the root
        at += 2 if at < size and message[at] >= 0xC0 else 1
        if at + _RECORD.size > size:
            raise BadQuery(FORMERR, "a record cut off")
        kind, payload, extended, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size + length
        if kind == OPT:
            if edns is not None or message[start]:
                raise BadQuery(FORMERR, "a second OPT record, or one with a name")
            edns = Edns(payload, extended >> 16 & 0xFF, bool(extended & _DO))
    if at != size:
        raise BadQuery(FORMERR, "a record cut off, or bytes after the end")
    return edns


def reply(
    query: Query, rcode: int = NOERROR, *, records: bytes = b"", count: int = 0, truncated: bool = False
) -> bytes:
    """All but the id: the question as asked, `count` answers in `records`, and OPT if the query had one."""
    return reply_head(query, rcode, count=count, truncated=truncated) + records + reply_opt(query, rcode)


def reply_head(query: Query, rcode: int = NOERROR, *, count: int, truncated: bool = False) -> bytes:
    """What comes before the answers, without the id."""
    flags = QR | RA | query.flags & (RD | CD) | rcode & 0xF | (TC if truncated else 0)
    return _REST.pack(flags, 1, count, 0, 0 if query.edns is None else 1) + query.question


def reply_opt(query: Query, rcode: int = NOERROR) -> bytes:
    """What comes after the answers: our OPT record with the client's DO bit, if it sent one."""
    if query.edns is None:
        return b""
    extended = rcode >> 4 << 24 | (_DO if query.edns.wants_dnssec else 0)
    return b"\0" + _RECORD.pack(OPT, MOST_UDP, extended, 0)


def refusal(message: bytes, rcode: int) -> bytes:
    """A bare header without id, for a message of which no more is understood; it has 12 bytes at least."""
    flags = int.from_bytes(message[2:4], "big")
    return _REST.pack(QR | RA | flags & (_OPCODE | RD) | rcode, 0, 0, 0, 0)


def address_records(addresses: list[bytes], ttl: int) -> bytes:
    """A or AAAA records of the question's name: 16 bytes for each address of 4, 28 for each of 16."""
    heads = {length: _AT_QUESTION + _RECORD.pack(kind, IN, ttl, length) for kind, length in ((A, 4), (AAAA, 16))}
    return b"".join(heads[len(address)] + address for address in addresses)


def name_record(name: bytes, ttl: int) -> bytes:
    """The PTR record of the question's name; `name` as `encode_name` gives it."""
    return _AT_QUESTION + _RECORD.pack(PTR, IN, ttl, len(name)) + name


def encode_name(text: str) -> bytes:
    """`web.mynet`, with or without a final dot, to labels with their lengths and a final zero.

    Raises `ValueError` when it is no name: an empty label, one over 63 bytes, more than 255 in all.
    """
    labels = [label.encode() for label in text.removesuffix(".").split(".")]
    if not all(0 < len(label) <= MAX_LABEL for label in labels):
        raise ValueError(f"{text!r} is no DNS name: each part between dots has 1 to {MAX_LABEL} bytes")
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(wire) > MAX_NAME:
        raise ValueError(f"{text!r} is no DNS name: it has more than {MAX_NAME} bytes")
    return wire


def reverse_address(labels: list[bytes]) -> bytes | None:
    """The address a reverse name stands for, 4 or 16 bytes; None when it is another name, or only a part of one.

    `5.0.0.10.in-addr.arpa` is 10.0.0.5 (RFC 1035, 3.5); IPv6 has a label per half byte under `ip6.arpa` (RFC 3596).
    """
    if len(labels) not in (6, 34) or labels[-1].lower() != b"arpa":
        return None
    kind, parts = labels[-2].lower(), labels[-3::-1]
    if kind == b"in-addr" and len(parts) == 4:
        if all(part.isdigit() and len(part) <= 3 and int(part) < 256 for part in parts):
            return bytes(int(part) for part in parts)
    elif kind == b"ip6" and len(parts) == 32:
        digits = b"".join(parts)
        if len(digits) == 32 and all(digit in b"0123456789abcdefABCDEF" for digit in digits):
            return bytes.fromhex(digits.decode())
    return None
