"""eBPF by bpf(2): maps, programs, links, and what is pinned. No library: it is one system call.

A descriptor keeps its object alive; so does a pin, a name in a file system of type bpf. Numbers are from linux/bpf.h.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from hivemesh.wire.sockaddr import MapSpec

_CALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361}
(_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD, _OBJ_PIN, _OBJ_GET, _LOOKUP_BATCH, _UPDATE_BATCH,
 _DELETE_BATCH, _LINK_CREATE, _LINK_UPDATE) = 0, 1, 2, 3, 5, 6, 7, 24, 26, 27, 28, 29  # fmt: skip
_PROG_TYPE_CGROUP_SOCK_ADDR = 18
_BATCH = 4096
_LOG = 1 << 20
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether this is a machine whose instructions `wire.bpfasm` writes."""
    return platform.machine() in _CALL_NUMBERS


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _bpf_with(command, buffer)


def _bpf_with(command: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    result = int(_libc.syscall(_CALL_NUMBERS[platform.machine()], command, buffer, len(buffer)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _at(buffer: "ctypes.Array[ctypes.c_char]") -> int:
    return ctypes.addressof(buffer)


class Map:
    """A map by its descriptor, closed with `close`."""

    def __init__(self, handle: int, spec: MapSpec) -> None:
        self.handle = handle
        self.spec = spec

    @classmethod
    def create(cls, name: str, spec: MapSpec) -> "Map":
        """Raises `OSError`."""
        attributes = struct.pack(
            "=5I2I16s", spec.kind, spec.key, spec.value, spec.most, spec.flags, 0, 0, name.encode()[:15]
        )
        return cls(_bpf(_MAP_CREATE, attributes), spec)

    def close(self) -> None:
        os.close(self.handle)

    def get(self, key: bytes) -> bytes | None:
        key_buffer = ctypes.create_string_buffer(key, self.spec.key)
        value = ctypes.create_string_buffer(self.spec.value)
        try:
            _bpf(_MAP_LOOKUP, struct.pack("=IIQQQ", self.handle, 0, _at(key_buffer), _at(value), 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Many with one call. Raises `OSError`: E2BIG when the map is full; some may have been put then."""
        items = list(entries.items())
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            keys = ctypes.create_string_buffer(b"".join(k for k, _ in part), len(part) * self.spec.key)
            values = ctypes.create_string_buffer(b"".join(v for _, v in part), len(part) * self.spec.value)
            _bpf(_UPDATE_BATCH, self._batch(0, 0, _at(keys), _at(values), len(part)))

    def remove(self, keys: Collection[bytes]) -> None:
        """Many with one call; what is not there is fine."""
        many = list(keys)
        for start in range(0, len(many), _BATCH):
            part = many[start : start + _BATCH]
            buffer = ctypes.create_string_buffer(b"".join(part), len(part) * self.spec.key)
            try:
                _bpf(_DELETE_BATCH, self._batch(0, 0, _at(buffer), 0, len(part)))
            except FileNotFoundError:  # it stopped at one that is not there
                for key in part:
                    self._remove(key)

    def _remove(self, key: bytes) -> None:
        buffer = ctypes.create_string_buffer(key, self.spec.key)
        with contextlib.suppress(FileNotFoundError):
            _bpf(_MAP_DELETE, struct.pack("=IIQQQ", self.handle, 0, _at(buffer), 0, 0))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All of them, as they are on the way through."""
        keys = ctypes.create_string_buffer(_BATCH * self.spec.key)
        values = ctypes.create_string_buffer(_BATCH * self.spec.value)
        mark = ctypes.create_string_buffer(max(4, self.spec.key))
        first, more = True, True
        while more:
            attributes = self._batch(0 if first else _at(mark), _at(mark), _at(keys), _at(values), _BATCH)
            buffer = ctypes.create_string_buffer(attributes, len(attributes))
            try:
                _bpf_with(_LOOKUP_BATCH, buffer)
            except OSError as error:
                if error.errno != errno.ENOENT:  # ENOENT: these are the last
                    raise
                more = False
            first = False
            (count,) = struct.unpack_from("=I", buffer.raw, 32)
            key, value = self.spec.key, self.spec.value
            for n in range(count):
                yield keys.raw[n * key : (n + 1) * key], values.raw[n * value : (n + 1) * value]

    def _batch(self, position: int, into: int, keys: int, values: int, count: int) -> bytes:
        return struct.pack("=QQQQIIQQ", position, into, keys, values, count, self.handle, 0, 0)


def load(name: str, attach: int, code: bytes) -> int:
    """The descriptor of a program for sockets' addresses. Raises `OSError` with the verifier's last words."""
    instructions = ctypes.create_string_buffer(code, len(code))
    license = ctypes.create_string_buffer(b"GPL")

    def attempt(log: "ctypes.Array[ctypes.c_char] | None") -> int:
        attributes = struct.pack(
            "=IIQQIIQII16sII",
            _PROG_TYPE_CGROUP_SOCK_ADDR, len(code) // 8, _at(instructions), _at(license),
            1 if log else 0, _LOG if log else 0, _at(log) if log else 0,
            0, 0, name.encode()[:15], 0, attach,
        )  # fmt: skip
        return _bpf(_PROG_LOAD, attributes)

    try:
        return attempt(None)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
    words = ctypes.create_string_buffer(_LOG)
    try:
        return attempt(words)
    except OSError as error:
        lines = [line for line in words.value.decode(errors="replace").splitlines() if line]
        said = [line for line in lines if not line.startswith(("processed ", "verification time", "stack depth"))]
        raise OSError(error.errno, f"{error.strerror}: {said[-1] if said else 'no words'}") from None


def attach(program: int, group: int, where: int) -> int:
    """The descriptor of a link of `program` to a cgroup, beside those of others. It ends with its last descriptor or
    pin."""
    return _bpf(_LINK_CREATE, struct.pack("=IIII16x", program, group, where, 0))


def exchange(link: int, program: int) -> None:
    """Let a link lead to another program; no socket sees none in between."""
    _bpf(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def pin(handle: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, struct.pack("=QII", _at(name), handle, 0))


def pinned(path: Path) -> int:
    """The descriptor of what is pinned there. Raises `FileNotFoundError`."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("=QII", _at(name), 0, 0))


# --- file systems --------------------------------------------------------------------------------------------------


def mount(path: Path) -> None:
    """Have a file system for pins there, a new one if there is none."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if str(path.resolve()) in _mounts("bpf"):
        return
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot mount bpf at {path}: {os.strerror(code)}")


def unmount(path: Path) -> None:
    """Take it away, with all that is pinned there; gone already is fine."""
    if str(path.resolve()) in _mounts("bpf"):
        _libc.umount2(os.fsencode(path), _MNT_DETACH)
    with contextlib.suppress(OSError):
        path.rmdir()


def cgroup_root() -> str:
    """Where the whole hierarchy of cgroup v2 is mounted, or ""."""
    found = sorted(_mounts("cgroup2"), key=len)
    return found[0] if found else ""


def _mounts(kind: str) -> list[str]:
    """Mount points of whole file systems of that kind, as proc_pid_mountinfo(5) lists them."""
    found = []
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            _, _, _, root, point, *_ = before.split(" ")
            if after.startswith(f"{kind} ") and root == "/":
                found.append(point.replace("\\040", " "))
    return found
