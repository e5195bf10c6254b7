"""nftables over netlink: values to messages, dumps to values. No sockets here.

Message, attribute and hook numbers are from linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hivemesh.wire.nft import GOTO, Attr, Chain, Expr, Goto, Hook, Map, Rule

NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
DELETIONS = frozenset({DELTABLE, DELCHAIN, DELRULE, DELSET, DELSETELEM})
GETGEN = 16
BATCH_BEGIN, BATCH_END = 16, 17

FAMILY = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
FAMILY_NAMES = {number: name for name, number in FAMILY.items()}

_INET_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_NETDEV_HOOKS = {"ingress": 0, "egress": 1}

# Data types as `nft` numbers them, with their length and whether they are in the machine's byte order (1) or the
# network's (2): the numbers go into the set's user data and are only for listings.
_TYPES = {
    "ipv4_addr": (7, 4, 2),
    "ipv6_addr": (8, 16, 2),
    "ether_addr": (9, 6, 2),
    "inet_proto": (12, 1, 2),
    "inet_service": (13, 2, 2),
    "mark": (19, 4, 1),
    "ifname": (41, 16, 1),
}
_VERDICT_TYPE = 0xFFFFFF00
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 1, 4, 0x300, 0x400, 0x800
_MAP_FLAG = 8
_COUNTS = 1 << 16
"""Of a shape, beside the kernel's own flags: elements count what finds them."""
_NESTED = 0x8000
_CHUNK = 48_000
"""Bytes of elements in one message: a nested attribute's length has 16 bits."""


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message without its header, and what it does, for error texts."""

    kind: int
    family: int
    flags: int
    body: bytes
    what: str


def pack(kind: int, flags: int, seq: int, family: int, body: bytes, resource: int = 0) -> bytes:
    """A netlink message with its nfnetlink header."""
    return struct.pack("=IHHII", 20 + len(body), kind, flags | _REQUEST, seq, 0) + struct.pack(
        ">BBH", family, 0, resource
    ) + body  # fmt: skip


def pack_batch(messages: Iterable[Message], generation: int | None) -> tuple[bytes, int]:
    """One transaction: all or nothing, and nothing if the ruleset is not at `generation` any more.

    Returns the bytes and the sequence number of the last change, the only one acknowledged. The n-th message has
    sequence number n from 1 on; 0 is the batch itself.
    """
    changes = list(messages)
    begin = _attr(1, generation.to_bytes(4, "big")) if generation is not None else b""
    parts = [pack(BATCH_BEGIN, 0, 0, 0, begin, resource=10)]
    for number, change in enumerate(changes, 1):
        flags = change.flags | (_ACK if number == len(changes) else 0)
        parts.append(pack(0xA00 | change.kind, flags, number, change.family, change.body))
    parts.append(pack(BATCH_END, 0, len(changes) + 1, 0, b"", resource=10))
    return b"".join(parts), len(changes)


def pack_dump(kind: int, family: int, table: str = "", name: str = "") -> bytes:
    """A question for all rules, chains or sets of a table, or all elements of the set `name`."""
    body = (_text(1, table) if table else b"") + (_text(2, name) if name else b"")
    return pack(0xA00 | kind, _DUMP, 1, family, body)


def pack_generation_question() -> bytes:
    return pack(0xA00 | GETGEN, 0, 1, 0, b"")


# --- values to messages --------------------------------------------------------------------------------------------


def _attr(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _nest(kind: int, *inner: bytes) -> bytes:
    return _attr(kind | _NESTED, b"".join(inner))


def _u32(kind: int, number: int) -> bytes:
    return _attr(kind, (number & 0xFFFFFFFF).to_bytes(4, "big"))


def _text(kind: int, value: str) -> bytes:
    return _attr(kind, value.encode() + b"\0")


def _attrs(attrs: Iterable[Attr]) -> bytes:
    return b"".join(_attr(k, v) if isinstance(v, bytes) else _nest(k, _attrs(v)) for k, v in attrs)


def add_table(family: str, table: str) -> Message:
    return Message(NEWTABLE, FAMILY[family], _CREATE, _text(1, table), f"add table {family} {table}")


def delete_table(family: str, table: str) -> Message:
    return Message(DELTABLE, FAMILY[family], 0, _text(1, table), f"delete table {family} {table}")


def hook_number(family: str, hook: str) -> int:
    return (_NETDEV_HOOKS if family == "netdev" else _INET_HOOKS)[hook]


def add_chain(family: str, table: str, chain: Chain) -> Message:
    body = _text(1, table) + _text(3, chain.name)
    if (hook := chain.hook) is not None:
        device = _text(3, hook.device) if hook.device else b""
        body += _nest(4, _u32(1, hook_number(family, hook.hook)), _u32(2, hook.priority), device)
        body += _text(7, hook.type)
    return Message(NEWCHAIN, FAMILY[family], _CREATE, body, f"add chain {chain.name}")


def delete_chain(family: str, table: str, chain: str) -> Message:
    return Message(DELCHAIN, FAMILY[family], 0, _text(1, table) + _text(3, chain), f"delete chain {chain}")


def add_rule(family: str, table: str, chain: str, rule: Rule) -> Message:
    exprs = [_nest(1, _text(1, expr.name), _nest(2, _attrs(expr.attrs))) for expr in rule.exprs]
    body = _text(1, table) + _text(2, chain) + _nest(4, *exprs)
    if rule.comment:
        text = rule.comment.encode() + b"\0"
        body += _attr(7, bytes([0, len(text)]) + text)
    return Message(
        NEWRULE,
        FAMILY[family],
        _CREATE | _APPEND,
        body,
        f"add rule to chain {chain}" + (f" ({rule.comment})" if rule.comment else ""),
    )


def flush_chain(family: str, table: str, chain: str) -> Message:
    return Message(DELRULE, FAMILY[family], 0, _text(1, table) + _text(2, chain), f"flush chain {chain}")


def _shape(types: tuple[str, ...]) -> tuple[int, int]:
    """The kernel's type number (six bits per part) and length of a concatenation (parts padded to 4 bytes)."""
    number, length = 0, 0
    for name in types:
        kind, size, _ = _TYPES[name]
        number = number << 6 | kind
        length += (size + 3) & ~3 if len(types) > 1 else size
    return number, length


def map_shape(wanted: Map) -> tuple[int, int, int, int, int]:
    """Flags, key type and length, value type and length, as the kernel reports them."""
    key, counts = _shape(wanted.key), _COUNTS if wanted.counts else 0
    if not wanted.value:
        return counts, *key, 0, 0
    if wanted.value == ("verdict",):
        return _MAP_FLAG | counts, *key, _VERDICT_TYPE, 0
    return _MAP_FLAG | counts, *key, *_shape(wanted.value)


def _udata(kind: int, data: bytes) -> bytes:
    return bytes([kind, len(data)]) + data


def _byteorder(types: tuple[str, ...]) -> int:
    """libnftables writes the order of a single type and leaves a concatenation's open (0)."""
    return _TYPES[types[0]][2] if len(types) == 1 and types[0] in _TYPES else 0


def _typeof(wanted: Map) -> bytes:
    """User data by which `nft` prints keys and values in the right byte order."""
    data = _udata(0, struct.pack("=I", _byteorder(wanted.key)))
    if wanted.value:
        data += _udata(1, struct.pack("=I", _byteorder(wanted.value)))
    return data


def add_map(family: str, table: str, wanted: Map, number: int) -> Message:
    """`number` tells sets of one transaction apart; the kernel needs one and does not keep it."""
    flags, key_type, key_length, value_type, value_length = map_shape(wanted)
    body = _text(1, table) + _text(2, wanted.name) + _u32(3, flags & ~_COUNTS) + _u32(4, key_type) + _u32(5, key_length)
    if flags & _MAP_FLAG:
        body += _u32(6, value_type)
        if value_length:
            body += _u32(7, value_length)
    body += _u32(10, number) + _attr(13, _typeof(wanted))
    if wanted.counts:  # kernel 5.7: of the set, for each element that comes
        body += _nest(17, _text(1, "counter"), _nest(2))
    return Message(NEWSET, FAMILY[family], _CREATE, body, f"add map {wanted.name}")


def delete_map(family: str, table: str, name: str) -> Message:
    return Message(DELSET, FAMILY[family], 0, _text(1, table) + _text(2, name), f"delete map {name}")


def _element(key: bytes, value: bytes | Goto | None) -> bytes:
    body = _nest(1, _attr(1, key))
    if isinstance(value, Goto):
        body += _nest(2, _nest(2, _u32(1, GOTO), _text(2, value.chain)))
    elif value is not None:
        body += _nest(2, _attr(1, value))
    return _nest(1, body)


def _elements(
    kind: int, flags: int, family: str, table: str, name: str, elements: Iterable[bytes], what: str
) -> Iterator[Message]:
    head = _text(1, table) + _text(2, name)
    chunk: list[bytes] = []
    size = 0
    for element in elements:
        chunk.append(element)
        size += len(element)
        if size > _CHUNK:
            yield Message(kind, FAMILY[family], flags, head + _nest(3, *chunk), what)
            chunk, size = [], 0
    if chunk:
        yield Message(kind, FAMILY[family], flags, head + _nest(3, *chunk), what)


def add_elements(
    family: str, table: str, name: str, elements: Mapping[bytes, bytes | Goto | None]
) -> Iterator[Message]:
    packed = (_element(key, value) for key, value in elements.items())
    return _elements(NEWSETELEM, _CREATE, family, table, name, packed, f"add elements to {name}")


def delete_elements(family: str, table: str, name: str, keys: Iterable[bytes]) -> Iterator[Message]:
    packed = (_element(key, None) for key in keys)
    return _elements(DELSETELEM, 0, family, table, name, packed, f"delete elements from {name}")


# --- dumps to values -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DumpedRule:
    """A rule as the kernel shows it: expression names with their attributes, still packed."""

    exprs: tuple[tuple[str, bytes], ...]
    comment: str


def messages_in(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence number, body after the nfnetlink header or of the error) of each message."""
    position = 0
    while position + 16 <= len(data):
        length, kind, flags, seq, _ = struct.unpack_from("=IHHII", data, position)
        yield kind, flags, seq, data[position + 16 : position + length]
        position += (length + 3) & ~3


def attrs_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message or of another attribute."""
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        if length < 4:
            return
        yield kind & 0x3FFF, data[position + 4 : position + length]
        position += (length + 3) & ~3


def string(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def parse_chain(family: str, body: bytes) -> tuple[str, str, Hook | None]:
    """Table, name and hook. The hook's name and device are what decides; its counters are not looked at."""
    attrs = dict(attrs_in(body[4:]))
    hook = None
    if 4 in attrs:
        inner = dict(attrs_in(attrs[4]))
        names = _NETDEV_HOOKS if family == "netdev" else _INET_HOOKS
        number = int.from_bytes(inner[1], "big")
        device = string(inner[3]) if 3 in inner else ""
        if not device and 4 in inner:
            device = next((string(name) for _, name in attrs_in(inner[4])), "")
        hook = Hook(
            type=string(attrs.get(7, b"")),
            hook=next((name for name, value in names.items() if value == number), str(number)),
            priority=int.from_bytes(inner[2], "big", signed=True),
            device=device,
        )
    return string(attrs[1]), string(attrs[3]), hook


def parse_rule(body: bytes) -> tuple[str, str, DumpedRule]:
    """Table, chain and rule."""
    attrs = dict(attrs_in(body[4:]))
    exprs = []
    for _, element in attrs_in(attrs.get(4, b"")):
        inner = dict(attrs_in(element))
        exprs.append((string(inner[1]), inner.get(2, b"")))
    comment = ""
    userdata = attrs.get(7, b"")
    if len(userdata) > 2 and userdata[0] == 0:
        comment = string(userdata[2 : 2 + userdata[1]])
    return string(attrs[1]), string(attrs[2]), DumpedRule(tuple(exprs), comment)


def parse_map(body: bytes) -> tuple[str, str, tuple[int, int, int, int, int]]:
    """Table, name and shape."""
    attrs = dict(attrs_in(body[4:]))

    def number(kind: int) -> int:
        return int.from_bytes(attrs.get(kind, b""), "big")

    counts = _COUNTS if 17 in attrs or 18 in attrs else 0
    flags, value_type = number(3) | counts, number(6)
    value_length = 0 if value_type == _VERDICT_TYPE else number(7)
    return string(attrs[1]), string(attrs[2]), (flags, number(4), number(5), value_type, value_length)


def parse_elements(body: bytes) -> Iterator[tuple[bytes, bytes | Goto | None]]:
    """Keys and values of one message of a dump."""
    for kind, elements in attrs_in(body[4:]):
        if kind != 3:
            continue
        for _, element in attrs_in(elements):
            attrs = dict(attrs_in(element))
            if 1 not in attrs:  # a set's catch-all element has no key; we never make one
                continue
            key = dict(attrs_in(attrs[1]))[1]
            value: bytes | Goto | None = None
            if 2 in attrs:
                data = dict(attrs_in(attrs[2]))
                value = data[1] if 1 in data else Goto(string(dict(attrs_in(data[2])).get(2, b"")))
            yield key, value


@dataclass(frozen=True, slots=True)
class Counted:
    """Since an element or a rule was made."""

    packets: int
    bytes: int


def parse_counters(body: bytes) -> Iterator[tuple[bytes, Counted, str]]:
    """Key, counter, and chain of a verdict map (else empty), of each element of one message of a dump that counts."""
    for kind, elements in attrs_in(body[4:]):
        if kind != 3:
            continue
        for _, element in attrs_in(elements):
            attrs = dict(attrs_in(element))
            if 1 not in attrs or 7 not in attrs:
                continue
            data = dict(attrs_in(attrs.get(2, b"")))
            chain = string(dict(attrs_in(data[2])).get(2, b"")) if 2 in data else ""
            yield dict(attrs_in(attrs[1]))[1], _counted(dict(attrs_in(attrs[7])).get(2, b"")), chain


def counter_of(rule: DumpedRule) -> Counted | None:
    """What a rule counted, if it counts."""
    return next((_counted(data) for name, data in rule.exprs if name == "counter"), None)


def _counted(data: bytes) -> Counted:
    attrs = dict(attrs_in(data))
    return Counted(int.from_bytes(attrs.get(2, b""), "big"), int.from_bytes(attrs.get(1, b""), "big"))


def _contains(dumped: bytes, sent: tuple[Attr, ...]) -> bool:
    actual = dict(attrs_in(dumped))
    for kind, value in sent:
        if kind not in actual:
            return False
        if isinstance(value, bytes):
            if actual[kind] != value:
                return False
        elif not _contains(actual[kind], value):
            return False
    return True


def same_rule(dumped: DumpedRule, wanted: Rule) -> bool:
    """Everything we would send is in what is dumped; the kernel adds attributes of its own."""
    return (
        dumped.comment == wanted.comment
        and len(dumped.exprs) == len(wanted.exprs)
        and all(_same_expr(d, w) for d, w in zip(dumped.exprs, wanted.exprs, strict=True))
    )


def _same_expr(dumped: tuple[str, bytes], wanted: Expr) -> bool:
    return dumped[0] == wanted.name and _contains(dumped[1], wanted.attrs)
