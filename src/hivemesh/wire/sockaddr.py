"""The programs that balance sockets, and the layout of their maps. Pure: bytes for the kernel.

    connect4/6   TCP: {namespace, VIP} -> entry; slot := in turn, or by hash; {group, slot} -> backend; go there instead
    sendmsg4/6   UDP without connect: the same, but a socket that spoke to the VIP before keeps its backend while that
                 is one; remember who was meant
    recvmsg4/6   UDP: an answer of that backend comes from the VIP
    getpeername  TCP: the peer is the VIP

A namespace is known by its cookie, a number the kernel never uses twice, so that the programs of several nodes on one
machine do not meet. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d: sockets of IPv6 that speak IPv4 are not special.

UDP sockets that connect are left to nftables: there, and only there, a flow can be led to another backend while its
owner does nothing.

The hash is nftables' jhash of the client's address: both engines lead a client to the same backend. A socket that is
not bound has no address yet; the entry says which slot the sandbox's own address has.

Context and helpers are from linux/bpf.h (`struct bpf_sock_addr`, `struct bpf_sock`): stable for user space.
"""

import ipaddress
import struct
from dataclasses import dataclass

from hivemesh.model.addr import Address
from hivemesh.wire.bpfasm import FP, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, Code

HASH, LRU_HASH = 1, 9  # BPF_MAP_TYPE_…
ON_DEMAND = 1  # BPF_F_NO_PREALLOC


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSpec:
    """Sizes in bytes; `most` entries."""

    kind: int
    key: int
    value: int
    most: int
    flags: int = 0


ENTRIES, SLOTS, MEMBERS, FLOWS, PEERS = "entries", "slots", "members", "flows", "peers"
MAPS = {
    ENTRIES: MapSpec(kind=HASH, key=24, value=24, most=1 << 17, flags=ON_DEMAND),
    SLOTS: MapSpec(kind=HASH, key=8, value=16, most=1 << 18, flags=ON_DEMAND),
    MEMBERS: MapSpec(kind=HASH, key=20, value=4, most=1 << 17, flags=ON_DEMAND),
    # the kernel drops what was not used for longest: UDP apart from TCP, which only loses a name of its peer
    FLOWS: MapSpec(kind=LRU_HASH, key=32, value=24, most=1 << 15),
    PEERS: MapSpec(kind=LRU_HASH, key=32, value=24, most=1 << 14),
}

_ENTRY = struct.Struct("=IIIIII")  # group, count, mode, hash seed, counter, slot of the sandbox's own address
_IN_TURN, _BY_HASH4, _BY_HASH6 = 0, 1, 2
_HASH_START = 0xDEADBEEF  # JHASH_INITVAL, linux/jhash.h
_MASK = 0xFFFFFFFF
_MAPPED = b"\0" * 10 + b"\xff\xff"


def packed(address: Address) -> bytes:
    """16 bytes."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def entry_key(cookie: int, address: Address) -> bytes:
    return struct.pack("=Q", cookie) + packed(address)


def cookie_of(key: bytes) -> int:
    """The namespace of an entry's key."""
    return int(struct.unpack_from("=Q", key)[0])


def address_of(key: bytes) -> Address:
    """The virtual address of an entry's key."""
    found = ipaddress.IPv6Address(key[8:])
    return found.ipv4_mapped or found


def entry(group: int, count: int, address: Address, seed: int | None, own: Address | None) -> bytes:
    """An entry's value: connections to `address` go to the `count` slots of `group`. With a `seed` by hash, `own` is
    the address that sockets get which are not bound; without, in turn."""
    if seed is None:
        return _ENTRY.pack(group, count, _IN_TURN, 0, 0, 0)
    mode = _BY_HASH4 if address.version == 4 else _BY_HASH6
    start = _HASH_START + len(address.packed) + seed & _MASK
    slot = hashed(own.packed, seed) * count >> 32 if own is not None else 0
    return _ENTRY.pack(group, count, mode, start, 0, slot)


def group_of(value: bytes) -> tuple[int, int]:
    """Group and count of an entry."""
    group, count, *_ = _ENTRY.unpack(value)
    return int(group), int(count)


def led_by(value: bytes) -> int:
    """How many sockets an entry has led to a backend."""
    return int(_ENTRY.unpack(value)[4])


def steady(value: bytes) -> bytes:
    """An entry without its counter, to compare."""
    return value[:16] + bytes(4) + value[20:]


def slot_key(group: int, slot: int) -> bytes:
    return struct.pack("=II", group, slot)


def member_key(group: int, address: Address) -> bytes:
    return struct.pack("=I", group) + packed(address)


def hashed(data: bytes, seed: int) -> int:
    """The kernel's jhash of 4 or 16 bytes."""
    words: list[int] = list(struct.unpack(f"<{len(data) // 4}I", data))
    a = b = c = _HASH_START + len(data) + seed & _MASK
    if len(words) == 4:
        a, b, c = a + words[0] & _MASK, b + words[1] & _MASK, c + words[2] & _MASK
        registers = {"a": a, "b": b, "c": c}
        for one, two, bits, three in _MIX:
            x, y = registers[one], registers[two]
            registers[one] = (x - y & _MASK) ^ _rotated(y, bits)
            registers[two] = y + registers[three] & _MASK
        a, b, c = registers["a"], registers["b"], registers["c"]
    registers = {"a": a + words[-1] & _MASK, "b": b, "c": c}
    for one, two, bits in _FINAL:
        registers[one] = (registers[one] ^ registers[two]) - _rotated(registers[two], bits) & _MASK
    return registers["c"]


def _rotated(number: int, bits: int) -> int:
    return (number << bits | number >> (32 - bits)) & _MASK


_MIX = (("a", "c", 4, "b"), ("b", "a", 6, "c"), ("c", "b", 8, "a"),
        ("a", "c", 16, "b"), ("b", "a", 19, "c"), ("c", "b", 4, "a"))  # fmt: skip
"""__jhash_mix: one -= two; one ^= rol32(two, bits); two += three."""
_FINAL = (("c", "b", 14), ("a", "c", 11), ("b", "a", 25), ("c", "b", 16), ("a", "c", 4), ("b", "a", 14), ("c", "b", 24))
"""__jhash_final: one ^= two; one -= rol32(two, bits)."""


# --- the programs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where a program is attached: an `enum bpf_attach_type`, and what to do there."""

    name: str
    attach: int
    six: bool
    task: str


HOOKS = tuple(
    Hook(name=f"{task}{family}", attach=attach, six=family == 6, task=task)
    for task, attaches in (("connect", (10, 11)), ("sendmsg", (14, 15)), ("recvmsg", (19, 20)),
                           ("getpeername", (29, 30)))
    for family, attach in zip((4, 6), attaches, strict=True)
)  # fmt: skip

# struct bpf_sock_addr
_USER_IP4, _USER_IP6, _USER_PORT, _PROTOCOL, _SOCKET = 4, 8, 24, 36, 64
# struct bpf_sock
_SOURCE_IP4, _SOURCE_IP6 = 24, 28
_TCP, _UDP = 6, 17
_LOOKUP, _UPDATE, _SOCKET_COOKIE, _NETNS_COOKIE, _SET_RESULT = 1, 2, 46, 122, 187  # BPF_FUNC_…
_ECONNREFUSED = 111
_ALL_IPV4 = -65536  # the third word of ::ffff:0:0/96 in network order
_FORWARD, _BACK = 0, 1
_REGISTERS = {"a": R2, "b": R3, "c": R4}

# the stack: keys and values of maps
_ADDRESS, _COOKIE = -16, -24
_FLOW_SOCKET, _FLOW_ADDRESS, _FLOW_PORT, _FLOW_DIRECTION = -56, -48, -32, -28
_VALUE_ADDRESS, _VALUE_GROUP = -80, -64
_SLOT_GROUP, _SLOT_NUMBER = -88, -84
_MEMBER_GROUP, _MEMBER_ADDRESS = -112, -108
_VIP = -128


def program(hook: Hook, *, refuses: bool) -> Code:
    """`refuses`: connections to a VIP without backends, which needs kernel 5.18; else they pass, to nftables."""
    code = Code()
    code.copy_register(R6, R1)
    code.load(R1, R6, _PROTOCOL)
    code.jump_if(R1, "!=", _UDP if hook.task in ("sendmsg", "recvmsg") else _TCP, "pass")
    _load_address(code, hook)
    if hook.task in ("connect", "sendmsg"):
        _choose(code, hook, refuses=refuses)
    else:
        _tell_whom_it_meant(code, hook)
    code.label("pass")
    code.mov(R0, 1)
    code.exit()
    return code


def _load_address(code: Code, hook: Hook) -> None:
    if hook.six:
        code.copy(FP, _ADDRESS, R6, _USER_IP6, 16)
        return
    code.store_number(FP, _ADDRESS, 0, size=8)
    code.store_number(FP, _ADDRESS + 8, _ALL_IPV4)
    code.copy(FP, _ADDRESS + 12, R6, _USER_IP4, 4)


def _store_address(code: Code, hook: Hook) -> None:
    if hook.six:
        code.copy(R6, _USER_IP6, FP, _ADDRESS, 16)
    else:
        code.copy(R6, _USER_IP4, FP, _ADDRESS + 12, 4)


def _lookup(code: Code, name: str, key: int) -> None:
    code.map(R1, name)
    code.address(R2, key)
    code.call(_LOOKUP)


def _update(code: Code, name: str, key: int, value: int) -> None:
    code.map(R1, name)
    code.address(R2, key)
    code.address(R3, value)
    code.mov(R4, 0)
    code.call(_UPDATE)


def _flow_key(code: Code, direction: int) -> None:
    """This socket, the address at hand, its port."""
    code.copy_register(R1, R6)
    code.call(_SOCKET_COOKIE)
    code.store(FP, _FLOW_SOCKET, R0, size=8)
    code.copy(FP, _FLOW_ADDRESS, FP, _ADDRESS, 16)
    code.copy(FP, _FLOW_PORT, R6, _USER_PORT, 4)
    code.store_number(FP, _FLOW_DIRECTION, direction)


def _choose(code: Code, hook: Hook, *, refuses: bool) -> None:
    """r7: the entry, r8: its number of slots."""
    code.copy_register(R1, R6)
    code.call(_NETNS_COOKIE)
    code.store(FP, _COOKIE, R0, size=8)
    _lookup(code, ENTRIES, _COOKIE)
    code.jump_if(R0, "==", 0, "pass", wide=True)
    code.copy_register(R7, R0)
    code.load(R8, R7, 4)
    code.jump_if(R8, "==", 0, "refuse")
    code.copy(FP, _VIP, FP, _ADDRESS, 16)
    remembered = FLOWS if hook.task == "sendmsg" else PEERS
    if hook.task == "sendmsg":
        _keep_flow(code)
    _slot(code, hook)
    code.store(FP, _SLOT_NUMBER, R1)
    code.load(R1, R7, 8)
    code.jump_if(R1, "==", _IN_TURN, "counted")  # by its turn
    code.mov(R1, 1)
    code.fetch_add(R7, 16, R1)
    code.label("counted")
    code.copy(FP, _SLOT_GROUP, R7, 0, 4)
    _lookup(code, SLOTS, _SLOT_GROUP)
    code.jump_if(R0, "==", 0, "pass", wide=True)  # changing right now: nftables knows
    code.copy(FP, _ADDRESS, R0, 0, 16)
    if hook.task == "sendmsg":
        code.copy(FP, _VALUE_ADDRESS, FP, _ADDRESS, 16)
        code.copy(FP, _VALUE_GROUP, R7, 0, 4)
        code.store_number(FP, _VALUE_GROUP + 4, 0)
        _update(code, remembered, _FLOW_SOCKET, _VALUE_ADDRESS)
        code.label("known")
    _flow_key(code, _BACK)
    if hook.task == "sendmsg":  # also keeps it from being dropped as unused
        _lookup(code, remembered, _FLOW_SOCKET)
        code.jump_if(R0, "!=", 0, "rewrite", wide=True)
    code.copy(FP, _VALUE_ADDRESS, FP, _VIP, 16)
    code.store_number(FP, _VALUE_GROUP, 0, size=8)
    _update(code, remembered, _FLOW_SOCKET, _VALUE_ADDRESS)
    code.label("rewrite")
    _store_address(code, hook)
    code.jump("pass")
    code.label("refuse")
    if refuses:
        code.mov(R1, -_ECONNREFUSED)
        code.call(_SET_RESULT)
        code.mov(R0, 0)
        code.exit()


def _keep_flow(code: Code) -> None:
    """A backend this socket already speaks with at this VIP and port, unless it is none any more."""
    _flow_key(code, _FORWARD)
    _lookup(code, FLOWS, _FLOW_SOCKET)
    code.jump_if(R0, "==", 0, "new", wide=True)
    code.copy_register(R9, R0)
    code.load(R2, R7, 0)
    code.load(R1, R9, 16)
    code.jump_if_register(R1, "==", R2, "kept")
    code.store(FP, _MEMBER_GROUP, R2)
    code.copy(FP, _MEMBER_ADDRESS, R9, 0, 16)
    _lookup(code, MEMBERS, _MEMBER_GROUP)
    code.jump_if(R0, "==", 0, "new", wide=True)
    code.copy(R9, 16, R7, 0, 4)
    code.label("kept")
    code.copy(FP, _ADDRESS, R9, 0, 16)
    code.jump("known")
    code.label("new")


def _slot(code: Code, hook: Hook) -> None:
    """r1: the slot's number."""
    code.load(R1, R7, 8)
    code.jump_if(R1, "!=", _IN_TURN, "hash")
    code.mov(R1, 1)
    code.fetch_add(R7, 16, R1)
    code.mod32(R1, R8)
    code.jump("chosen")
    code.label("hash")
    code.load(R9, R6, _SOCKET, size=8)
    if hook.six:
        code.jump_if(R1, "==", _BY_HASH6, "hash6")
        code.load(R5, R9, _SOURCE_IP6 + 12)
    else:
        code.load(R5, R9, _SOURCE_IP4)
    code.jump_if(R5, "==", 0, "own")
    _start(code)
    _finish(code)
    if hook.six:
        code.label("hash6")
        code.load(R5, R9, _SOURCE_IP6)
        for word in (4, 8, 12):
            code.load(R1, R9, _SOURCE_IP6 + word)
            code.or32(R5, R1)
        code.jump_if(R5, "==", 0, "own")
        _start(code)
        for word, register in ((0, R2), (4, R3), (8, R4)):
            code.load(R5, R9, _SOURCE_IP6 + word)
            code.add32(register, R5)
        for one, two, bits, three in _MIX:
            x, y = _REGISTERS[one], _REGISTERS[two]
            code.sub32(x, y)
            code.rotated32(R0, y, bits, R1)
            code.xor32(x, R0)
            code.add32(y, _REGISTERS[three])
        code.load(R5, R9, _SOURCE_IP6 + 12)
        _finish(code)
    code.label("own")
    code.load(R1, R7, 20)
    code.label("chosen")


def _start(code: Code) -> None:
    for register in (R2, R3, R4):
        code.load(register, R7, 12)


def _finish(code: Code) -> None:
    """r1: the share of r8 that the hash falls into, once r5 is added."""
    code.add32(R2, R5)
    for one, two, bits in _FINAL:
        x, y = _REGISTERS[one], _REGISTERS[two]
        code.xor32(x, y)
        code.rotated32(R0, y, bits, R1)
        code.sub32(x, R0)
    code.mov32(R1, R4)
    code.scale32(R1, R8)
    code.jump("chosen")


def _tell_whom_it_meant(code: Code, hook: Hook) -> None:
    _flow_key(code, _BACK)
    _lookup(code, FLOWS if hook.task == "recvmsg" else PEERS, _FLOW_SOCKET)
    code.jump_if(R0, "==", 0, "pass", wide=True)
    code.copy(FP, _ADDRESS, R0, 0, 16)
    _store_address(code, hook)
