"""Sockets of this machine's sandboxes, led to backends as they connect: the programs of `wire.sockaddr`, attached to
all processes at once, and the maps that tell them where to.

Programs are attached at the root of cgroup v2, beside those of other nodes on this machine. Maps and links are pinned,
so that the daemon's death changes nothing; the next one takes over the maps with all that is in them, and exchanges the
programs for its own behind the same links. Pins are in a file system of the node's own: what a node has pinned ends
with its mount namespace at the latest.

What fights us here:
- A change must not be seen half done. Slots have a number of their own (`group`), shared by all namespaces with the
  same slots in the same order: those of a new group are written first, then the entries are turned to it, then the old
  group goes. Who read the old entry just before finds no slot, and goes to nftables, which is always behind us.
- Maps have a size. A namespace that does not fit is left to nftables, and that is said once.
"""

import contextlib
import errno
import hashlib
import logging
import os
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from hivemesh.kernel import bpf, netns
from hivemesh.kernel.api import SocketVip
from hivemesh.kernel.bpf import Map
from hivemesh.kernel.sockets import NETNS_DIR, inside
from hivemesh.model.addr import Address
from hivemesh.wire.sockaddr import (
    ENTRIES,
    HOOKS,
    MAPS,
    MEMBERS,
    SLOTS,
    address_of,
    cookie_of,
    entry,
    entry_key,
    group_of,
    led_by,
    member_key,
    packed,
    program,
    slot_key,
    steady,
)

log = logging.getLogger("hivemesh.network")

Own = Callable[[Address], Address | None]
"""The address that a namespace's sockets get on their way to a VIP; None: unknown."""
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, kernel 5.14
_LINK, _MAP = "link_", "map_"
_ADDRESS = 16  # bytes


class SocketHooks:
    """Of one node. Methods block for a moment; safe to call from several threads."""

    def __init__(self, pins: Path | None) -> None:
        """Without a folder for pins all ends with this process."""
        self._pins = pins
        self._lock = threading.Lock()
        self._lack: str | None = None  # None: not tried yet
        self._maps: dict[str, Map] = {}
        self._links: list[int] = []
        self._refuses = True
        self._clear()

    def _clear(self) -> None:
        self._cookies: dict[str, int] = {}
        self._entries: dict[int, dict[bytes, bytes]] = {}  # without counters
        self._groups: dict[bytes, int] = {}  # slots, packed one after the other
        self._slots: dict[int, bytes] = {}
        self._users: Counter[int] = Counter()
        self._last_group = 0
        self._too_many: set[int] = set()

    # --- on and off

    def lack(self) -> str:
        """ "" when sockets are balanced here, which the first call sees to; else one line that says why not."""
        with self._lock:
            if self._lack is None:
                try:
                    self._lack = self._open()
                except OSError as error:
                    self._lack = _words(error)
                if self._lack:
                    self._close()
            return self._lack

    @property
    def said(self) -> str | None:
        """What `lack` said; None: nobody asked, nothing is attached by us."""
        return self._lack

    def close(self) -> None:
        """Let go; what is pinned goes on."""
        with self._lock:
            self._close()
            self._lack = None

    def discard(self) -> None:
        """End it all, also what an earlier process left."""
        with self._lock:
            self._close()
            self._lack = None
            if self._pins is not None:
                for pin in self._pinned(""):
                    with contextlib.suppress(OSError):
                        pin.unlink()
                bpf.unmount(self._pins)

    def _pinned(self, prefix: str) -> list[Path]:
        if self._pins is None or not self._pins.is_dir():
            return []
        return [path for path in self._pins.iterdir() if path.name.startswith(prefix)]

    def _close(self) -> None:
        for link in self._links:
            os.close(link)
        for found in self._maps.values():
            found.close()
        self._links, self._maps = [], {}
        self._clear()

    def _open(self) -> str:
        if not bpf.supported():
            return f"there are no programs for machines of type {os.uname().machine}"
        root = bpf.cgroup_root()
        if not root:
            return "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified, and start again"
        if self._pins is not None:
            bpf.mount(self._pins)
        adopted = self._open_maps()
        programs = self._load()
        group = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for hook in HOOKS:
                self._links.append(self._attach(hook.name, hook.attach, programs[hook.name], group))
        finally:
            os.close(group)
            for handle in programs.values():
                os.close(handle)
        if adopted:
            self._adopt()
        return ""

    def _open_maps(self) -> bool:
        """True if they were there. Maps of another shape than ours lose their pins, and go with the programs that use
        them."""
        shape = hashlib.sha256(repr(sorted(MAPS.items())).encode()).hexdigest()[:8]
        paths = {name: self._pins / f"{_MAP}{shape}_{name}" for name in MAPS} if self._pins is not None else {}
        try:
            for name, path in paths.items():
                self._maps[name] = Map(bpf.pinned(path), MAPS[name])
            if paths:
                return True
        except FileNotFoundError:
            pass
        for name, spec in MAPS.items():
            if name in self._maps:
                self._maps.pop(name).close()
            self._maps[name] = Map.create(name, spec)
        for path in self._pinned(_MAP):
            path.unlink()
        for name, path in paths.items():
            bpf.pin(self._maps[name].handle, path)
        return False

    def _load(self) -> dict[str, int]:
        """Descriptors of programs by hook. Before kernel 5.18 none can refuse: nftables does."""
        handles = {name: found.handle for name, found in self._maps.items()}

        def load(*, refuses: bool) -> dict[str, int]:
            found: dict[str, int] = {}
            try:
                for hook in HOOKS:
                    code = program(hook, refuses=refuses).assemble(handles)
                    found[hook.name] = bpf.load(hook.name, hook.attach, code)
            except OSError:
                for handle in found.values():
                    os.close(handle)
                raise
            return found

        try:
            self._refuses = True
            return load(refuses=True)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS):
                raise
            self._refuses = False
            return load(refuses=False)

    def _attach(self, name: str, where: int, handle: int, group: int) -> int:
        path = self._pins / f"{_LINK}{name}" if self._pins is not None else None
        if path is not None and path.exists():
            link = bpf.pinned(path)
            try:
                bpf.exchange(link, handle)
                return link
            except OSError as error:  # its cgroup is gone: a container's, say, that the daemon ran in
                log.debug("the pinned link %s is dead: %s", name, error)
                os.close(link)
                path.unlink()
        link = bpf.attach(handle, group, where)
        if path is not None:
            bpf.pin(link, path)
        return link

    def _adopt(self) -> None:
        """Read what an earlier process left, and drop what belongs to namespaces that are gone."""
        slots: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
        for key, value in self._maps[SLOTS].items():
            slots[int.from_bytes(key[:4], "little")][int.from_bytes(key[4:], "little")] = value
        for name in netns.names():
            with contextlib.suppress(OSError):
                self._cookies[name] = _cookie(name)
        alive = set(self._cookies.values())
        stale: list[bytes] = []
        for key, value in self._maps[ENTRIES].items():
            group, count = group_of(value)
            if cookie_of(key) not in alive or (count and slots.get(group, {}).keys() != set(range(count))):
                stale.append(key)
                continue
            self._entries.setdefault(cookie_of(key), {})[key] = steady(value)
            self._users[group] += 1
        self._maps[ENTRIES].remove(stale)
        self._cookies = {name: cookie for name, cookie in self._cookies.items() if cookie in self._entries}
        for group, found in slots.items():
            self._last_group = max(self._last_group, group)
            self._slots[group] = b"".join(found[slot] for slot in sorted(found))
            if self._users[group]:
                self._groups[self._slots[group]] = group
            else:
                self._drop_group(group)

    # --- entries

    def ensure(self, namespace: str, wanted: Sequence[SocketVip], own: Own) -> int:
        """Make the namespace's entries those of `wanted`; how many changed. Raises `FileNotFoundError` when there is no
        such namespace."""
        with self._lock:
            if not self._maps or not (wanted or namespace in self._cookies):
                return 0
            cookie = _cookie(namespace)
            if self._cookies.get(namespace, cookie) != cookie:
                self._forget(namespace)
            self._cookies[namespace] = cookie
            have = self._entries.get(cookie, {})
            if not wanted and not have:
                return 0
            values: dict[bytes, bytes] = {}
            try:
                values, fresh = self._values(cookie, wanted, own)
                put = {key: value for key, value in values.items() if have.get(key) != value}
                self._maps[ENTRIES].put(put)
            except OSError as error:
                if error.errno not in (errno.E2BIG, errno.ENOMEM):
                    raise
                self._maps[ENTRIES].remove(values)
                self._leave_to_others(namespace, cookie)
                return 0
            gone = [key for key in have if key not in values]
            self._maps[ENTRIES].remove(gone)
            self._too_many.discard(cookie)
            self._entries[cookie] = values
            for value in put.values():
                self._users[group_of(value)[0]] += 1
            self._release([have[key] for key in (*gone, *(key for key in put if key in have))])
            for group in fresh:
                if not self._users[group]:
                    self._drop_group(group)
            return len(put) + len(gone)

    def _values(self, cookie: int, wanted: Sequence[SocketVip], own: Own) -> tuple[dict[bytes, bytes], list[int]]:
        """The entries' values by key, and the groups that had to be made, whose slots are in the kernel already."""
        values: dict[bytes, bytes] = {}
        fresh: list[int] = []
        slots: dict[bytes, bytes] = {}
        members: dict[bytes, bytes] = {}
        for vip in wanted:
            mine = own(vip.address) if vip.seed is not None else None
            if (vip.seed is not None and mine is None) or not (vip.slots or self._refuses):
                continue
            group = 0
            if vip.slots:
                addresses = b"".join(map(packed, vip.slots))
                known = self._groups.get(addresses)
                if known is None:
                    self._last_group = known = self._last_group + 1
                    self._groups[addresses], self._slots[known] = known, addresses
                    fresh.append(known)
                    slots.update({slot_key(known, n): packed(a) for n, a in enumerate(vip.slots)})
                    members.update({member_key(known, a): bytes(4) for a in vip.slots})
                group = known
            values[entry_key(cookie, vip.address)] = entry(group, len(vip.slots), vip.address, vip.seed, mine)
        try:
            self._maps[MEMBERS].put(members)
            self._maps[SLOTS].put(slots)
        except OSError:
            for group in fresh:
                self._drop_group(group)
            raise
        return values, fresh

    def _release(self, values: Sequence[bytes]) -> None:
        """Entries that led to groups do so no more."""
        for value in values:
            group, _ = group_of(value)
            self._users[group] -= 1
            if not self._users[group]:
                self._drop_group(group)

    def _drop_group(self, group: int) -> None:
        del self._users[group]
        addresses = self._slots.pop(group, b"")
        if self._groups.get(addresses) == group:
            del self._groups[addresses]
        count = len(addresses) // _ADDRESS
        self._maps[SLOTS].remove([slot_key(group, slot) for slot in range(count)])
        parts = {addresses[n * _ADDRESS : (n + 1) * _ADDRESS] for n in range(count)}
        self._maps[MEMBERS].remove([group.to_bytes(4, "little") + part for part in parts])

    def _leave_to_others(self, namespace: str, cookie: int) -> None:
        if cookie not in self._too_many:
            log.warning("%s: the maps for sockets are full, nftables alone balances its services", namespace)
        self._forget(namespace)
        self._too_many.add(cookie)
        for group in [group for group in self._slots if not self._users[group]]:
            self._drop_group(group)

    def counted(self) -> list[tuple[str, Address, int]]:
        """Namespace, virtual address, and how many sockets were led from there to a backend since the entry was made
        (or changed). Raises `OSError`."""
        with self._lock:
            if not self._maps:
                return []
            names = {cookie: name for name, cookie in self._cookies.items()}
            return [
                (names[cookie_of(key)], address_of(key), led_by(value))
                for key, value in self._maps[ENTRIES].items()
                if cookie_of(key) in names
            ]

    def forget(self, namespace: str) -> None:
        """The namespace goes, or is gone."""
        with self._lock:
            if self._maps:
                self._forget(namespace)

    def _forget(self, namespace: str) -> None:
        cookie = self._cookies.pop(namespace, None)
        if cookie is None:
            return
        self._too_many.discard(cookie)
        entries = self._entries.pop(cookie, {})
        self._maps[ENTRIES].remove(entries)
        self._release(list(entries.values()))

    def differences(self, namespace: str, wanted: Sequence[SocketVip], own: Own) -> list[str]:
        """What the kernel's map lacks or has too much."""
        with self._lock:
            if not self._maps:
                return []
            cookie = _cookie(namespace)
            if cookie in self._too_many:
                return []
            known = self._entries.get(cookie, {})
            found = []
            keys = set()
            for vip in wanted:
                key = entry_key(cookie, vip.address)
                keys.add(key)
                mine = own(vip.address) if vip.seed is not None else None
                if (vip.seed is not None and mine is None) or not (vip.slots or self._refuses):
                    continue
                group = self._groups.get(b"".join(map(packed, vip.slots)), 0)
                value = self._maps[ENTRIES].get(key)
                if value is None:
                    found.append(f"socket entry is missing: {vip.address}")
                elif steady(value) != entry(group, len(vip.slots), vip.address, vip.seed, mine):
                    found.append(f"socket entry is wrong: {vip.address}")
            return found + [f"socket entry is too much: {key[8:].hex()}" for key in known if key not in keys]


def _cookie(namespace: str) -> int:
    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")

    return inside(f"{NETNS_DIR}/{namespace}", ask)


def _words(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "the kernel does not let this process load programs (bpf: EPERM): it needs CAP_BPF and CAP_NET_ADMIN"
    if error.errno == errno.ENOSYS:
        return "this kernel has no bpf(2)"
    return f"this kernel does not take the programs (5.14 or later does): {error.strerror or error}"
