"""Questions read and replies written, with dnspython as the witness."""

import ipaddress
import struct

import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.wire.dns import (
    FORMERR,
    MAX_NAME,
    MOST_QUERY,
    NOTIMP,
    BadQuery,
    Edns,
    Query,
    encode_name,
    parse_query,
    refusal,
    reply,
    reverse_address,
)

WEB = dns.message.make_query("web.front", "A").to_wire()
EDNS = dns.message.make_query("web", "AAAA", use_edns=0, payload=1232, want_dnssec=True).to_wire()


def header(flags: int = 0x100, questions: int = 1, answers: int = 0, authority: int = 0, additional: int = 0) -> bytes:
    return struct.pack("!HHHHHH", 7, flags, questions, answers, authority, additional)


def opt(owner: bytes = b"\0", data: bytes = b"") -> bytes:
    return owner + struct.pack("!HHIH", 41, 1232, 0, len(data)) + data


QUESTION = b"\3web\0\0\1\0\1"


def test_question_is_read_as_asked() -> None:
    query = parse_query(dns.message.make_query("WeB.front", "AAAA").to_wire())
    assert (query.labels(), query.type, query.klass, query.edns) == ([b"WeB", b"front"], 28, 1, None)
    assert query.udp_limit == 512
    assert parse_query(dns.message.make_query(".", "NS").to_wire()).labels() == []


@pytest.mark.parametrize(("payload", "limit"), [(0, 512), (512, 512), (1232, 1232), (4096, 4096), (65535, 4096)])
def test_edns_is_read_and_its_size_kept_within_bounds(payload: int, limit: int) -> None:
    wire = dns.message.make_query("web", "A", use_edns=0, payload=payload, want_dnssec=True).to_wire()
    query = parse_query(wire)
    assert query.edns == Edns(payload, 0, True)
    assert query.udp_limit == limit


def test_other_additional_records_are_stepped_over() -> None:
    signature = b"\3key\0" + struct.pack("!HHIH", 250, 255, 0, 3) + b"abc"
    compressed = b"\1a\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + bytes(4)
    query = parse_query(header(additional=3) + QUESTION + signature + compressed + opt(data=b"\0\x0a\0\1x"))
    assert query.edns == Edns(1232, 0, False)


@pytest.mark.parametrize("message", [b"", WEB[:11], header(0x8180) + QUESTION])
def test_what_is_no_query_gets_no_reply(message: bytes) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_query(message)
    assert caught.value.rcode is None


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (header(0x2900) + QUESTION, NOTIMP),  # update
        (header(0x1000), NOTIMP),  # status
        (header(questions=0), FORMERR),
        (header(questions=2) + QUESTION + QUESTION, FORMERR),
        (header(answers=1) + QUESTION, FORMERR),
        (header(authority=1) + QUESTION, FORMERR),
        (header(), FORMERR),
        (WEB[:-1], FORMERR),
        (WEB + b"\0", FORMERR),
        (header() + b"\x0aweb", FORMERR),  # a label beyond the end
        (header() + b"\xc0\x0c\0\1\0\1", FORMERR),  # a pointer to itself
        (header() + b"\3web\xc0\x0c\0\1\0\1", FORMERR),
        (header() + b"\x40" + bytes(64) + b"\0\0\1\0\1", FORMERR),  # a label of 64
        (header() + b"\1a" * 127 + b"\1a\0\0\1\0\1", FORMERR),  # a name of 257
        (header() + b"\1a" * 2000 + b"\0\0\1\0\1", FORMERR),
        (header(additional=1) + QUESTION, FORMERR),
        (header(additional=2) + QUESTION + opt() + opt(), FORMERR),
        (header(additional=1) + QUESTION + opt(owner=b"\1a\0"), FORMERR),
        (header(additional=1) + QUESTION + opt()[:-1], FORMERR),
        (header(additional=1) + QUESTION + opt(data=b"ab")[:-1], FORMERR),
        (header(additional=1) + QUESTION + opt() + b"x", FORMERR),
        (header(additional=65535) + QUESTION + opt(), FORMERR),
        (header(additional=1) + QUESTION + opt(data=bytes(MOST_QUERY)), FORMERR),
    ],
)
def test_malformed_query_is_told_what_it_is(message: bytes, rcode: int) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_query(message)
    assert caught.value.rcode == rcode
    said = dns.message.from_wire(message[:2] + refusal(message, rcode))
    assert (said.id, said.rcode(), said.question) == (message[0] << 8 | message[1], rcode, [])
    assert said.flags & dns.flags.QR


def test_longest_name_is_a_name() -> None:
    wire = header() + b"\1a" * 127 + b"\0\0\1\0\1"
    assert len(b".".join(parse_query(wire).labels())) == 253


def test_reply_carries_the_question_as_asked_and_the_flags_that_belong_to_it() -> None:
    asked = dns.message.make_query("WeB", "A", use_edns=0, want_dnssec=True)
    asked.flags |= dns.flags.CD
    said = dns.message.from_wire(asked.to_wire()[:2] + reply(parse_query(asked.to_wire()), 16))
    assert asked.is_response(said)
    assert said.question[0].name.to_text() == "WeB."
    assert said.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA | dns.flags.CD
    assert (said.rcode(), said.edns, said.ednsflags & dns.flags.DO) == (dns.rcode.BADVERS, 0, dns.flags.DO)
    plain = dns.message.make_query("web", "A", flags=0)
    assert dns.message.from_wire(plain.to_wire()[:2] + reply(parse_query(plain.to_wire()))).flags == (
        dns.flags.QR | dns.flags.RA
    )


@given(st.binary(max_size=600) | st.builds(lambda body: header(additional=1) + body, st.binary(max_size=80)))
def test_junk_is_a_query_or_a_bad_one(message: bytes) -> None:
    try:
        query = parse_query(message)
    except BadQuery:
        return
    assert isinstance(query, Query)
    assert len(query.question) <= MAX_NAME + 4
    dns.message.from_wire(message[:2] + reply(query))


@given(st.sampled_from([WEB, EDNS]), st.integers(0, 60), st.binary(max_size=3), st.integers(0, 3))
def test_bent_query_is_a_query_or_a_bad_one(wire: bytes, at: int, new: bytes, without: int) -> None:
    try:
        query = parse_query(wire[:at] + new + wire[at + without :])
    except BadQuery:
        return
    dns.message.from_wire(wire[:2] + reply(query))


@given(st.ip_addresses())
def test_reverse_name_stands_for_its_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    labels = [label.encode() for label in address.reverse_pointer.split(".")]
    assert reverse_address(labels) == address.packed
    assert reverse_address([label.upper() for label in labels]) == address.packed
    assert reverse_address(labels[1:]) is None


@pytest.mark.parametrize(
    "name",
    ["256.0.0.10.in-addr.arpa", "x.0.0.10.in-addr.arpa", "0001.0.0.10.in-addr.arpa", "1.0.0.10.ip6.arpa",
     "1.0.0.10.in-addr.example", "g" + ".0" * 31 + ".ip6.arpa", "00" + ".0" * 31 + ".ip6.arpa",
     "\u0661.0.0.10.in-addr.arpa"],
)  # fmt: skip
def test_name_like_a_reverse_one_stands_for_nothing(name: str) -> None:
    assert reverse_address([label.encode() for label in name.split(".")]) is None


@given(st.lists(st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True), min_size=1, max_size=8).map(".".join))
def test_name_is_written_as_dnspython_writes_it(name: str) -> None:
    assert encode_name(name) == encode_name(name + ".") == dns.name.from_text(name).to_wire()


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, ".".join(["a" * 63] * 4)])
def test_what_is_no_name_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="is no DNS name"):
        encode_name(name)
