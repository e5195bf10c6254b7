"""Make a table of ours in the kernel equal to a `Table` value: read, compare, and one atomic transaction.

What is inside a table of ours is ours: strangers found there are removed. Other tables are never touched.

Two things keep a change cheap whatever the size of the ruleset. The kernel counts the generations of a namespace's
ruleset: as long as the number is the one our last transaction left, nobody else changed anything and the last applied
value is what the kernel holds, so nothing is dumped. And a transaction names the generation it was computed for: if
somebody else commits in between, the kernel refuses it and we read again.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hivemesh.kernel.sockets import NETNS_DIR, close_netlink, open_netlink
from hivemesh.wire import nft_netlink as wire
from hivemesh.wire.nft import Goto, Hook, Rule, Table

_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 64 << 20
"""Limit of a transaction; the memory is only used while one is under way."""
_TIMEOUT_MS = 10_000
_ERROR, _DONE, _DUMP_INTERRUPTED = 2, 3, 0x10
_ATTEMPTS = 5
_NEW_GENERATION = 0xA00 | 15
_ANONYMOUS = 1


@dataclass(slots=True)
class _Chain:
    hook: Hook | None
    rules: list[wire.DumpedRule | Rule]


@dataclass(slots=True)
class _Map:
    shape: tuple[int, int, int, int, int]
    elements: Mapping[bytes, bytes | Goto | None]


@dataclass(slots=True)
class _Actual:
    """A table in the kernel, read from it or known from our own last transaction."""

    exists: bool = False
    chains: dict[str, _Chain] = field(default_factory=dict)
    maps: dict[str, _Map] = field(default_factory=dict)


class _Raced(Exception):
    """Somebody else changed the ruleset between our look and our transaction."""


class _Namespace:
    """The door to one namespace's ruleset; callers hold `lock`."""

    def __init__(self, namespace: str, identity: tuple[int, int]) -> None:
        self.namespace = namespace
        self.identity = identity
        self.lock = threading.Lock()
        self.applied: dict[tuple[str, str], Table] = {}
        self.generation = -1  # that `applied` speaks of
        self._socket = open_netlink(namespace, _NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def close(self) -> None:
        close_netlink(self._socket)

    def _receive(self) -> bytes:
        if not self._poll.poll(_TIMEOUT_MS):
            raise TimeoutError(errno.ETIMEDOUT, f"nftables in namespace {self.namespace or 'host'} does not answer")
        return self._socket.recv(1 << 20)

    def current_generation(self) -> int:
        """Of the namespace's whole ruleset."""
        self._socket.send(wire.pack_generation_question())
        for kind, _, _, body in wire.messages_in(self._receive()):
            if kind == _ERROR:
                raise _error(body, "read the generation")
            if kind == _NEW_GENERATION:
                return int.from_bytes(dict(wire.attrs_in(body[4:]))[1], "big")
        raise OSError(errno.EPROTO, "nftables did not tell its generation")

    def dump(self, kind: int, family: int, table: str = "", name: str = "") -> list[bytes]:
        """All bodies of one dump. Raises `_Raced` if it was not of one piece."""
        self._socket.send(wire.pack_dump(kind, family, table, name))
        bodies: list[bytes] = []
        raced = False
        while True:
            for message, flags, _, body in wire.messages_in(self._receive()):
                raced |= bool(flags & _DUMP_INTERRUPTED)
                if message == _ERROR:
                    raise _error(body, f"read {table or 'tables'}")
                if message == _DONE:
                    if raced:
                        raise _Raced
                    return bodies
                bodies.append(body)

    def commit(self, changes: Sequence[wire.Message], generation: int) -> None:
        """All of it or nothing. Raises `_Raced`, or `OSError` with the kernel's error of the first bad change."""
        data, last = wire.pack_batch(changes, generation)
        self._socket.send(data)
        first: OSError | None = None
        while True:
            for kind, _, seq, body in wire.messages_in(self._receive()):
                if kind != _ERROR:
                    continue
                code = -int(struct.unpack_from("=i", body)[0])
                if code == errno.ERESTART:
                    raise _Raced
                if code and first is None:
                    first = _error(body, changes[seq - 1].what if 0 < seq <= last else "transaction")
                if seq in (0, last):
                    if first is not None:
                        raise first
                    return

    def tables(self) -> set[tuple[str, str]]:
        """Family and name of every table, ours or not."""
        found = set()
        for body in self.dump(wire.GETTABLE, 0):
            family = wire.FAMILY_NAMES.get(body[0])
            if family is not None:
                found.add((family, wire.string(dict(wire.attrs_in(body[4:]))[1])))
        return found

    def read(self, family: str, name: str) -> _Actual:
        """The table as the kernel holds it."""
        number = wire.FAMILY[family]
        actual = _Actual(exists=(family, name) in self.tables())
        if not actual.exists:
            return actual
        for body in self.dump(wire.GETCHAIN, number):
            table, chain, hook = wire.parse_chain(family, body)
            if table == name:
                actual.chains[chain] = _Chain(hook, [])
        for body in self.dump(wire.GETRULE, number, name):
            table, chain, rule = wire.parse_rule(body)
            if table == name:
                actual.chains[chain].rules.append(rule)
        for body in self.dump(wire.GETSET, number, name):
            table, key, shape = wire.parse_map(body)
            if table == name:
                if shape[0] & _ANONYMOUS:  # goes with the rule that uses it
                    continue
                elements: dict[bytes, bytes | Goto | None] = {}
                for part in self.dump(wire.GETSETELEM, number, name, key):
                    elements.update(wire.parse_elements(part))
                actual.maps[key] = _Map(shape, elements)
        return actual

    def way_to(self, wanted: Table) -> tuple[Sequence[wire.Message], int]:
        """The messages that lead to `wanted`, and the generation they are good for."""
        generation = self.current_generation()
        known = self.applied.get((wanted.family, wanted.name))
        # A chain on a device goes with the device, and no generation counts that: netdev tables are always read.
        if known is not None and generation == self.generation and wanted.family != "netdev":
            return _ways.between(known, wanted), generation
        return list(_changes(self.read(wanted.family, wanted.name), wanted)), generation

    def remember(self, table: Table | None, key: tuple[str, str], generation: int, *, committed: bool) -> None:
        """The kernel holds `table` (None: no such table) as of `generation`, plus our own commit."""
        if generation != self.generation:
            self.applied.clear()
        self.generation = (generation + 1) & 0xFFFFFFFF if committed else generation
        if table is None:
            self.applied.pop(key, None)
        else:
            self.applied[key] = table


_doors: dict[str, _Namespace] = {}
_doors_lock = threading.Lock()


def _identity(namespace: str) -> tuple[int, int]:
    """A name may be given to a new namespace: the pinned file's device and inode tell them apart."""
    if not namespace:
        return 0, 0
    found = os.stat(f"{NETNS_DIR}/{namespace}")
    return found.st_dev, found.st_ino


def _door(namespace: str) -> _Namespace:
    identity = _identity(namespace)
    with _doors_lock:
        door = _doors.get(namespace)
        if door is None or door.identity != identity:
            if door is not None:
                door.close()
            door = _doors[namespace] = _Namespace(namespace, identity)
        return door


def forget(namespace: str) -> None:
    """Close what is open in a namespace that goes away, which its sockets would keep alive."""
    with _doors_lock:
        door = _doors.pop(namespace, None)
    if door is not None:
        with door.lock:
            door.close()


def ensure(namespace: str, table: Table) -> int:
    """Make the table so, in one transaction. Returns how many objects changed; 0: it was right already.

    Raises `OSError` with the kernel's errno when it refuses; then nothing changed.
    """
    door = _door(namespace)
    with door.lock:
        for _ in range(_ATTEMPTS):
            try:
                changes, generation = door.way_to(table)
                if changes:
                    door.commit(changes, generation)
            except _Raced:
                continue
            except OSError:
                door.applied.clear()
                raise
            door.remember(table, (table.family, table.name), generation, committed=bool(changes))
            return len(changes)
    raise OSError(errno.EAGAIN, f"table {table.name}: somebody else keeps changing the ruleset")


def delete(namespace: str, family: str, name: str) -> None:
    """Remove a table of ours; it may be gone already."""
    door = _door(namespace)
    with door.lock:
        for _ in range(_ATTEMPTS):
            generation = door.current_generation()
            try:
                gone = (family, name) not in door.tables()
                if not gone:
                    door.commit([wire.delete_table(family, name)], generation)
            except _Raced:
                continue
            door.remember(None, (family, name), generation, committed=not gone)
            return
    raise OSError(errno.EAGAIN, f"table {name}: somebody else keeps changing the ruleset")


def tables(namespace: str) -> set[tuple[str, str]]:
    """Family and name of every table in the namespace."""
    door = _door(namespace)
    with door.lock:
        for _ in range(_ATTEMPTS):
            try:
                return door.tables()
            except _Raced:
                continue
    raise OSError(errno.EAGAIN, "somebody else keeps changing the ruleset")


@dataclass(frozen=True, slots=True)
class Counters:
    """What a table of ours has counted."""

    elements: dict[str, dict[bytes, tuple[wire.Counted, str]]]
    """By map and key: the counter, and the chain a verdict map leads to."""
    rules: list[tuple[str, str, wire.Counted]]
    """Chain, comment and counter of each rule that counts."""


def counters(namespace: str, family: str, table: str, maps: Sequence[str]) -> Counters:
    """Of those maps, and of all rules. Nothing where there is no such table or map, or where none of ours was made yet:
    this opens no namespace. Raises `OSError`."""
    with _doors_lock:
        door = _doors.get(namespace)
    if door is None:
        return Counters({}, [])
    number = wire.FAMILY[family]
    with door.lock:
        for _ in range(_ATTEMPTS):
            found = Counters({}, [])
            try:
                if (family, table) not in door.tables():
                    return found
                for body in door.dump(wire.GETRULE, number, table):
                    name, chain, rule = wire.parse_rule(body)
                    counted = wire.counter_of(rule)
                    if name == table and counted is not None:
                        found.rules.append((chain, rule.comment, counted))
                for name in maps:
                    parts = door.dump(wire.GETSETELEM, number, table, name)
                    found.elements[name] = {k: (c, to) for part in parts for k, c, to in wire.parse_counters(part)}
            except _Raced:
                continue
            except FileNotFoundError:  # a map of another version
                return found
            return found
    raise OSError(errno.EAGAIN, f"table {table}: somebody else keeps changing the ruleset")


def generation(namespace: str) -> int:
    """The number that every change of any table in the namespace moves on, whoever makes it. Raises `OSError`."""
    door = _door(namespace)
    with door.lock:
        return door.current_generation()


def differences(namespace: str, table: Table) -> list[str]:
    """What the kernel lacks or has too much, read from the kernel whatever we remember; [] means equal."""
    steps = dict.fromkeys(change.what for change in _way_to(namespace, table))  # each once, in order
    return [f"nft {table.family} {table.name}: {step}" for step in steps]


def loses(namespace: str, table: Table) -> bool:
    """Whether making the kernel equal would take something out of the table, or replace it."""
    return any(change.kind in wire.DELETIONS for change in _way_to(namespace, table))


def _way_to(namespace: str, table: Table) -> list[wire.Message]:
    door = _door(namespace)
    with door.lock:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(_Raced):
                return list(_changes(door.read(table.family, table.name), table))
    raise OSError(errno.EAGAIN, f"table {table.name}: somebody else keeps changing the ruleset")


# --- comparison ------------------------------------------------------------------------------------------------------


class _Ways:
    """The latest ways from one table to another: many namespaces hold the same table, and go the same way."""

    def __init__(self) -> None:
        self._latest: deque[tuple[Table, Table, Sequence[wire.Message]]] = deque(maxlen=8)

    def between(self, known: Table, wanted: Table) -> Sequence[wire.Message]:
        if known is wanted:
            return ()
        for had, has, found in tuple(self._latest):
            if had is known and has is wanted:
                return found
        way = tuple(_changes(_as_actual(known), wanted))
        self._latest.append((known, wanted, way))
        return way


_ways = _Ways()


def _as_actual(table: Table) -> _Actual:
    return _Actual(
        exists=True,
        chains={chain.name: _Chain(chain.hook, list(chain.rules)) for chain in table.chains},
        maps={m.name: _Map(wire.map_shape(m), m.elements) for m in table.maps},
    )


def _same_rules(actual: list[wire.DumpedRule | Rule], wanted: tuple[Rule, ...]) -> bool:
    return len(actual) == len(wanted) and all(
        a is w or (a == w if isinstance(a, Rule) else wire.same_rule(a, w)) for a, w in zip(actual, wanted, strict=True)
    )


def _changes(actual: _Actual, wanted: Table) -> Iterator[wire.Message]:
    """The messages that lead from one to the other, in an order the kernel accepts: what refers to something goes
    before it and comes after it."""
    family, name = wanted.family, wanted.name
    maps = {m.name: m for m in wanted.maps}
    if any(m.shape != wire.map_shape(maps[key]) for key, m in actual.maps.items() if key in maps):
        yield wire.delete_table(
            family, name
        )  # a map cannot change its types; this does not happen between equal versions
        actual = _Actual()
    if not actual.exists:
        yield wire.add_table(family, name)

    chains = {chain.name: chain for chain in wanted.chains}
    stale = {key for key, chain in actual.chains.items() if key not in chains or chain.hook != chains[key].hook}
    rewritten = {
        key
        for key, chain in chains.items()
        if key not in actual.chains or key in stale or not _same_rules(actual.chains[key].rules, chain.rules)
    }
    for key in sorted(actual.chains):
        if (key in stale or key in rewritten) and actual.chains[key].rules:
            yield wire.flush_chain(family, name, key)
    for key, had in actual.maps.items():
        keep = maps[key].elements if key in maps else {}
        gone = [k for k, value in had.elements.items() if k not in keep or keep[k] != value]
        yield from wire.delete_elements(family, name, key, gone)
    for key in sorted(stale):
        yield wire.delete_chain(family, name, key)
    for key in actual.maps:
        if key not in maps:
            yield wire.delete_map(family, name, key)

    for chain in wanted.chains:
        if chain.name not in actual.chains or chain.name in stale:
            yield wire.add_chain(family, name, chain)
    for number, (key, m) in enumerate(maps.items(), 1):
        if key not in actual.maps:
            yield wire.add_map(family, name, m, number)
    for chain in wanted.chains:
        if chain.name in rewritten:
            for rule in chain.rules:
                yield wire.add_rule(family, name, chain.name, rule)
    for key, m in maps.items():
        had_elements = actual.maps[key].elements if key in actual.maps else {}
        new = {k: v for k, v in m.elements.items() if k not in had_elements or had_elements[k] != v}
        yield from wire.add_elements(family, name, key, new)


def _error(body: bytes, what: str) -> OSError:
    code = -int(struct.unpack_from("=i", body)[0])
    text = ""
    # with CAP_ACK only the header of our message (16 bytes) follows the code, then the kernel's words as attribute 1
    if len(body) > 20:
        text = next((wire.string(data) for kind, data in wire.attrs_in(body[20:]) if kind == 1), "")
    reason = f"{os.strerror(code)} ({text})" if text else os.strerror(code)
    return OSError(code, f"nftables: {what}: {reason}")
