"""Foreign DNS messages as bytes: when two questions are equal, how long an answer holds, an answer fitted to who asks.

Messages go on as they came. They are read only as far as needed: records are stepped over, names in them never
followed, so that no loop of compression pointers can keep us. Section numbers are those of RFC 1035 unless named.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = 12
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
PLAIN_UDP = 512
"""The size of an answer over UDP where the question names none (4.2.1)."""
MAX_UDP = 4096
"""No answer over UDP is longer, whatever the question allows."""
MAX_QUERY = 4096
"""No longer query is passed on: real ones have some hundred bytes, and each is held until it is answered."""
MAX_NAME = 255

_SOA, _OPT, _SIG, _TSIG, _IXFR, _AXFR, _ANY = 6, 41, 24, 250, 251, 252, 255
_QR, _OPCODE, _AA, _TC, _RD = 0x80, 0x78, 0x04, 0x02, 0x01  # third byte of the header
_CODE = 0x0F  # fourth byte
_COUNTS = struct.Struct("!HHH")  # of records, by section
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of data
_DO = 0x8000  # in the OPT's TTL (RFC 6891, 6.1.3)
_HARMLESS = frozenset({10, 11, 12})
"""EDNS options that are a matter between two hosts only, and may be left out: cookie, keepalive, padding."""


class Asked(NamedTuple):
    """A question that may be passed on."""

    key: bytes
    """Equal for questions with one answer: flags, EDNS and DO, name in lower case, type, class; all if not `common`."""
    end: int
    """Where the question section ends."""
    limit: int
    """Bytes an answer over UDP may have."""
    common: bool
    """Nothing about it is particular to who asks: its answer may be given to others and kept."""
    bare: bool
    """It has no EDNS options: an answer may go out as it is kept."""


class Record(NamedTuple):
    """A record of an answer; `section` counts answer 0, authority 1, additional 2."""

    section: int
    type: int
    ttl: int  # seconds
    ttl_at: int
    data: int
    end: int


def question_end(message: bytes) -> int:
    """Where the first question ends; 0 when there is none that is well formed and uncompressed."""
    at, size = HEADER, len(message)
    while at < size:
        length = message[at]
        if not length:
            return at + 5 if at + 5 <= size and at < HEADER + MAX_NAME else 0
        if length > 63:
            return 0
        at += length + 1
    return 0


def folded_question(message: bytes, end: int) -> bytes:
    """Name in lower case, type and class. (Lengths of labels are below 64: no letters.)"""
    return message[HEADER : end - 4].lower() + message[end - 4 : end]


def read_query(query: bytes) -> Asked | None:
    """None for what is not passed on: no query, no or several questions, something broken or far too long, a zone
    transfer (its many messages have no place in one answer)."""
    end = question_end(query)
    if not end or len(query) > MAX_QUERY or query[2] & (_QR | _OPCODE) or query[4:6] != b"\0\1":
        return None
    if query[end - 4] == 0 and query[end - 3] in (_IXFR, _AXFR):
        return None
    if len(query) == end and query[6:HEADER] == b"\0\0\0\0\0\0":
        key = query[2:4] + b"-" + folded_question(query, end)
        return Asked(key, end, PLAIN_UDP, bool(query[2] & _RD), True)
    records = read_records(query, end)
    if records is None:
        return None
    extra = [(record.section, record.type) for record in records]
    opt = next((record for record in records if record.type == _OPT), None)
    limit = PLAIN_UDP
    if opt is not None:
        limit = min(max(int.from_bytes(query[opt.ttl_at - 2 : opt.ttl_at]), PLAIN_UDP), MAX_UDP)
    plain = opt is not None and extra == [(2, _OPT)] and not opt.ttl & ~_DO
    if opt is None or not plain or not query[2] & _RD or not _options(query, opt) <= _HARMLESS:
        return Asked(query[2:], end, limit, False, False)
    key = query[2:4] + (b"D" if opt.ttl & _DO else b"E") + folded_question(query, end)
    return Asked(key, end, limit, True, opt.data == opt.end)


def read_records(message: bytes, start: int) -> list[Record] | None:
    """All records after the question; None when they are broken, or not all of the message."""
    size = len(message)
    at = start
    found: list[Record] = []
    for section, count in enumerate(_COUNTS.unpack_from(message, 6)):
        for _ in range(count):
            while True:
                if at >= size:
                    return None
                length = message[at]
                if length >= 0xC0:
                    at += 2
                    break
                if length > 63:
                    return None
                at += length + 1
                if not length:
                    break
            data = at + 10
            if data > size:
                return None
            kind, _, ttl, length = _RECORD.unpack_from(message, at)
            end = data + length
            if end > size:
                return None
            found.append(Record(section, kind, ttl, at + 4, data, end))
            at = end
    return found if at == size else None


def answers(message: bytes, query: bytes, end: int) -> bool:
    """Whether `message` answers `query`, whose question ends at `end`; the case of letters may differ.

    A server that refuses or does not understand may leave the question out.
    """
    if len(message) < HEADER or message[2] & (_QR | _OPCODE) != _QR:
        return False
    if message[4:6] == b"\0\0":
        return len(message) == HEADER and message[3] & _CODE in (FORMERR, SERVFAIL, NOTIMP, REFUSED)
    if message[4:6] != b"\0\1":
        return False
    return message[HEADER:end] == query[HEADER:end] or (
        question_end(message) == end and folded_question(message, end) == folded_question(query, end)
    )


def code_of(message: bytes) -> int:
    """The response code, without the part in EDNS."""
    return message[3] & _CODE


def truncated(message: bytes) -> bool:
    """Whether the sender left something out."""
    return bool(message[2] & _TC)


def lifetime(message: bytes, records: list[Record], *, most: int, most_negative: int) -> int:
    """Seconds for which an answer may be kept; 0: not at all.

    The least of all TTLs (those of authority and additional go out too). An answer without a record of the type asked
    for needs the zone's SOA and holds no longer than its minimum (RFC 2308, 4 and 5). A TTL with its highest bit set
    is 0 (RFC 2181, 8).
    """
    code = code_of(message)
    if code not in (NOERROR, NXDOMAIN) or truncated(message):
        return 0
    least = most
    found = set()
    for section, kind, ttl, _, _, end in records:
        if kind in (_TSIG, _SIG):
            return 0  # signed for one asker
        if kind == _OPT:
            if end != len(message):
                return 0  # `kept_form` counts on it being the last
            continue
        if not 0 < ttl < 1 << 31:
            return 0
        least = min(least, ttl)
        if section == 0:
            found.add(kind)
    if code == NOERROR and found:
        end = question_end(message)
        wanted = int.from_bytes(message[end - 4 : end - 2])
        if wanted == _ANY or wanted in found:
            return least
    minimum = next((_minimum(message, r) for r in records if r.section == 1 and r.type == _SOA), 0)
    return min(least, minimum, most_negative)


def kept_form(message: bytes, records: list[Record]) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """An answer as others may get it, and where its TTLs are, with their values.

    Without an id, not authoritative (it will come from us), without options in its OPT, an SOA beside the answer with
    the TTL for which the negative answer holds.
    """
    kept = bytearray(message)
    kept[0:2] = b"\0\0"
    kept[2] &= ~_AA
    ttls: list[tuple[int, int]] = []
    for record in records:
        if record.type == _OPT:
            if record.end == len(message):
                kept[record.data - 2 :] = b"\0\0"
            continue
        ttl = record.ttl if record.ttl < 1 << 31 else 0
        if record.type == _SOA and record.section == 1:
            ttl = min(ttl, _minimum(message, record))
        ttls.append((record.ttl_at, ttl))
    return bytes(kept), tuple(ttls)


def aged(message: bytes, ttls: tuple[tuple[int, int], ...], age: int) -> bytes:
    """`message` with each of its TTLs less by `age` seconds."""
    older = bytearray(message)
    for at, ttl in ttls:
        older[at : at + 4] = max(ttl - age, 0).to_bytes(4)
    return bytes(older)


def fitted(message: bytes, query: bytes, asked: Asked, *, tcp: bool) -> bytes:
    """A kept or shared answer for `query`: its id, its question as it wrote it, cut to what it may take."""
    if message[4:6] == b"\0\0":
        return query[:2] + message[2:]
    if not tcp and len(message) > asked.limit:
        message = _emptied(message, asked.end)
    if message[HEADER : asked.end] == query[HEADER : asked.end]:
        return query[:2] + message[2:]
    return query[:2] + message[2:HEADER] + query[HEADER : asked.end] + message[asked.end :]


def _emptied(message: bytes, end: int) -> bytes:
    """Header with TC, question and OPT: ask again over TCP."""
    records = read_records(message, end) or []
    opt = next((message[r.ttl_at - 5 : r.end] for r in records if r.type == _OPT), b"")
    header = message[:2] + bytes((message[2] | _TC, message[3])) + b"\0\1\0\0\0\0" + (b"\0\1" if opt else b"\0\0")
    return header + message[HEADER:end] + opt


def _minimum(message: bytes, soa: Record) -> int:
    """The last field of a SOA record; 0 for one that is too short."""
    return int.from_bytes(message[soa.end - 4 : soa.end]) if soa.end - soa.data >= 22 else 0


def _options(message: bytes, opt: Record) -> set[int]:
    """Codes of the EDNS options; {-1} when they are broken (RFC 6891, 6.1.2)."""
    return set(_option_codes(message, opt.data, opt.end))


def _option_codes(message: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        following = at + 4 + int.from_bytes(message[at + 2 : at + 4])
        if at + 4 > end or following > end:
            yield -1
            return
        yield int.from_bytes(message[at : at + 2])
        at = following
