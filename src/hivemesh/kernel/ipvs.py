"""IPVS: virtual services by packet mark and their destinations, in one namespace at a time.

pyroute2 speaks with it, imported with the first use: 9 MiB and 0.2 s that only those pay who want IPVS.

What fights us here:
- A destination that is deleted takes its connections along, so one that is wanted no more only gets weight 0. It is
  deleted when it has no connections, or when its backend is gone for good (`forget`).
- There are no events: what somebody else changes is found by reading.
- The kernel's own timeout ends idle TCP connections silently after 15 minutes; we set it as high as conntrack's.

Numbers are from linux/ip_vs.h and linux/genetlink.h.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivemesh.kernel.api import Destination, VirtualService
from hivemesh.kernel.netns import call_inside
from hivemesh.kernel.sockets import close_netlink, open_netlink
from hivemesh.model.addr import Address
from hivemesh.wire.netlink import ERROR, error_of, pack, replies, text

if TYPE_CHECKING:
    from pyroute2 import IPVS

TCP_TIMEOUT = 432_000
"""Seconds an idle TCP connection is kept: nf_conntrack_tcp_timeout_established."""
MISSING = "this kernel has no IPVS (ip_vs): load that module, or install the distribution's full kernel"

_NETLINK_GENERIC, _CONTROL, _GET_FAMILY, _FAMILY_NAME = 16, 16, 3, 2
_MASQUERADE = 0  # IP_VS_CONN_F_MASQ
_HASHED = 0x2  # IP_VS_SVC_F_HASHED: the kernel's own
_ALL_FLAGS = 0xFFFFFFFF
_REQUEST, _REQUEST_ACK = 1, 5
_LISTING = Path("/proc/thread-self/net/ip_vs")  # exists while the module is loaded

Key = tuple[int, int]
"""Family and mark of a service."""


@dataclass(slots=True)
class Done:
    """What one `ensure` did."""

    changed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Seen:
    """A service in the kernel: weight and number of connections of each destination."""

    scheduler: str
    flags: int
    destinations: dict[Address, tuple[int, int]]


def available(root: Path = Path("/")) -> bool:
    """Whether this kernel has IPVS, found without loading it: with the module each namespace costs more."""
    if (root / "proc/net/ip_vs").exists():
        return True
    modules = root / "lib/modules" / os.uname().release
    return any(_mentions(modules / name) for name in ("modules.dep", "modules.builtin"))


def _mentions(listing: Path) -> bool:
    try:
        return "/ip_vs.ko" in listing.read_text(errors="replace")
    except OSError:
        return False


def missing() -> str:
    """ "" where IPVS can be used (its module is then loaded), else one line that says what to do."""
    sock = open_netlink("", _NETLINK_GENERIC)
    try:
        sock.settimeout(10)
        sock.send(pack(_CONTROL, 0, 1, struct.pack("=BBH", _GET_FAMILY, 1, 0) + text(_FAMILY_NAME, "IPVS")))
        for reply in replies(sock.recv(1 << 16)):
            if reply.kind == ERROR and error_of(reply)[0]:
                return MISSING
        return ""
    finally:
        close_netlink(sock)


def ensure(namespace: str, wanted: Sequence[VirtualService], before: Sequence[VirtualService] | None) -> Done:
    """Make the services equal to `wanted`. `before` is what is there by our own last call, None: unknown, look.

    Raises `FileNotFoundError` when there is no such namespace, `OSError` (ENOTSUP) without IPVS.
    """
    if before is None and not wanted and not _used(namespace):
        return Done()
    return call_inside(namespace, lambda: _ensure(wanted, before))


def differences(namespace: str, wanted: Sequence[VirtualService]) -> list[str]:
    """What is missing or wrong; destinations that drain are neither."""
    if not wanted and not _used(namespace):
        return []
    if wanted and (lack := missing()):
        return [lack]
    return call_inside(namespace, lambda: _differences(wanted))


def forget(namespace: str, backends: Collection[Address]) -> int:
    """Delete the destinations of weight 0 that have these addresses: the next packet of their connections is refused.

    Returns how many. Raises `FileNotFoundError` when there is no such namespace.
    """
    if not backends or not _used(namespace):
        return 0

    def work() -> int:
        count = 0
        with _Door() as door:
            for key, seen in door.services():
                for address, (weight, _) in seen.destinations.items():
                    if address in backends and weight == 0:
                        door.delete_destination(key, address)
                        count += 1
        return count

    return call_inside(namespace, work)


def _used(namespace: str) -> bool:
    """Whether the namespace has services: a cheap look, for all those that have nothing to do with IPVS."""
    return _LISTING.exists() and call_inside(namespace, _listed)


def _listed() -> bool:
    try:
        with _LISTING.open() as file:
            return any(line.startswith("FWM") for line in file)
    except FileNotFoundError:
        return False


# --- in the namespace -----------------------------------------------------------------------------------------------


def _ensure(wanted: Sequence[VirtualService], before: Sequence[VirtualService] | None) -> Done:
    done = Done()
    with _Door() as door:
        known = {_key(service): service for service in before or ()}
        actual = dict(door.services()) if before is None else None
        if wanted and not before and door.tcp_timeout() != TCP_TIMEOUT:
            door.set_tcp_timeout(TCP_TIMEOUT)
            done.changed.append("TCP timeout")
        for service in wanted:
            key = _key(service)
            if actual is None and known.get(key) == service:
                continue
            seen = actual.get(key) if actual is not None else door.service(key)
            _attempt(done, service, lambda s=service, x=seen: _put(door, s, x, done))
        keys = {_key(service) for service in wanted}
        for key in (known if actual is None else actual).keys() - keys:
            seen = actual[key] if actual is not None else door.service(key)
            linger = known[key].linger if key in known else True
            if seen is not None:
                _attempt(done, key, lambda k=key, x=seen, w=linger: _drop(door, k, x, w, done))
    return done


def _attempt(done: Done, what: VirtualService | Key, work: Any) -> None:
    key = _key(what) if isinstance(what, VirtualService) else what
    try:
        work()
    except OSError as error:
        done.failed.append(f"IPVS service {_name(key)}: {error.strerror}")


def _put(door: "_Door", service: VirtualService, seen: _Seen | None, done: Done) -> None:
    key = _key(service)
    if seen is None:
        door.add(service)
        done.changed.append(f"IPVS service {_name(key)} was missing")
        seen = _Seen(service.scheduler, service.flags, {})
    elif (seen.scheduler, seen.flags) != (service.scheduler, service.flags):
        door.edit(service)
        done.changed.append(f"IPVS service {_name(key)} had scheduler {seen.scheduler}")
    for destination in service.destinations:
        weight, _ = seen.destinations.get(destination.address, (None, 0))
        if weight != destination.weight:
            door.set_destination(key, destination, new=weight is None)
            was = "missing" if weight is None else f"of weight {weight}"
            done.changed.append(f"IPVS destination {destination.address} of {_name(key)} was {was}")
    wanted = {destination.address for destination in service.destinations}
    _drain(door, key, {a: x for a, x in seen.destinations.items() if a not in wanted}, service.linger, done)


def _drain(door: "_Door", key: Key, found: dict[Address, tuple[int, int]], linger: bool, done: Done) -> int:
    """Returns how many are left, for the sake of their connections."""
    left = 0
    for address, (weight, connections) in found.items():
        if linger and connections:
            left += 1
            if weight == 0:
                continue
            door.set_destination(key, Destination(address=address, weight=0), new=False)
        else:
            door.delete_destination(key, address)
        if weight:
            done.changed.append(f"IPVS destination {address} of {_name(key)} was too much")
    return left


def _drop(door: "_Door", key: Key, seen: _Seen, linger: bool, done: Done) -> None:
    if _drain(door, key, seen.destinations, linger, done) == 0:
        door.delete(key)
        done.changed.append(f"IPVS service {_name(key)} was too much")


def _differences(wanted: Sequence[VirtualService]) -> list[str]:
    found = []
    with _Door() as door:
        actual = dict(door.services())
        if wanted and (timeout := door.tcp_timeout()) != TCP_TIMEOUT:
            found.append(f"IPVS keeps TCP connections for {timeout} s instead of {TCP_TIMEOUT}")
    for service in wanted:
        key = _key(service)
        seen = actual.pop(key, None)
        if seen is None:
            found.append(f"IPVS service {_name(key)} is missing")
            continue
        if (seen.scheduler, seen.flags) != (service.scheduler, service.flags):
            found.append(f"IPVS service {_name(key)} has scheduler {seen.scheduler} instead of {service.scheduler}")
        left = dict(seen.destinations)
        for destination in service.destinations:
            weight, _ = left.pop(destination.address, (None, 0))
            if weight != destination.weight:
                is_ = "missing" if weight is None else f"of weight {weight} instead of {destination.weight}"
                found.append(f"IPVS destination {destination.address} of {_name(key)} is {is_}")
        found += _too_much(key, left)
    for key, seen in actual.items():
        found += _too_much(key, seen.destinations)
    return found


def _too_much(key: Key, destinations: dict[Address, tuple[int, int]]) -> list[str]:
    return [
        f"IPVS destination {address} of {_name(key)} is too much"
        for address, (weight, _) in destinations.items()
        if weight
    ]


def _key(service: VirtualService) -> Key:
    return service.family, service.mark


def _name(key: Key) -> str:
    return f"{'IPv4' if key[0] == socket.AF_INET else 'IPv6'} mark {key[1]:#x}"


class _Door:
    """One conversation with IPVS, in the thread's own namespace. Refusals are `OSError`."""

    def __enter__(self) -> "_Door":
        import pyroute2
        from pyroute2.netlink.exceptions import NetlinkError
        from pyroute2.netlink.generic import ipvs

        self._lib, self._messages, self._error = pyroute2, ipvs, NetlinkError
        try:
            self._ipvs: IPVS = pyroute2.IPVS()
        except NetlinkError as error:
            raise OSError(errno.ENOTSUP, MISSING) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._ipvs.close()

    # --- services

    def services(self) -> Iterator[tuple[Key, _Seen]]:
        """Those by mark; services by address cannot be ours."""
        for reply in self._call(self._ipvs.service, "dump"):
            found = reply.get_attr("IPVS_CMD_ATTR_SERVICE")
            mark = found.get_attr("IPVS_SVC_ATTR_FWMARK")
            if mark:
                key = (found.get_attr("IPVS_SVC_ATTR_AF"), mark)
                yield key, self._seen(key, found)

    def service(self, key: Key) -> _Seen | None:
        try:
            replies = self._call(self._ipvs.service, "get", self._lib.IPVSService(af=key[0], fwmark=key[1]))
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT):
                return None
            raise
        return self._seen(key, replies[0].get_attr("IPVS_CMD_ATTR_SERVICE"))

    def _seen(self, key: Key, found: Any) -> _Seen:
        destinations = {}
        for reply in self._call(self._ipvs.dest, "dump", self._lib.IPVSService(af=key[0], fwmark=key[1])):
            one = reply.get_attr("IPVS_CMD_ATTR_DEST")
            counts = [one.get_attr(f"IPVS_DEST_ATTR_{kind}_CONNS") for kind in ("ACTIVE", "INACT", "PERSIST")]
            address = ipaddress.ip_address(one.get_attr("IPVS_DEST_ATTR_ADDR"))
            destinations[address] = (one.get_attr("IPVS_DEST_ATTR_WEIGHT"), sum(counts))
        flags = found.get_attr("IPVS_SVC_ATTR_FLAGS")["flags"] & ~_HASHED
        return _Seen(found.get_attr("IPVS_SVC_ATTR_SCHED_NAME"), flags, destinations)

    def add(self, service: VirtualService) -> None:
        self._call(self._ipvs.service, "add", self._described(service))

    def edit(self, service: VirtualService) -> None:
        self._call(self._ipvs.service, "set", self._described(service))

    def delete(self, key: Key) -> None:
        self._call(self._ipvs.service, "del", self._lib.IPVSService(af=key[0], fwmark=key[1]))

    def _described(self, service: VirtualService) -> Any:
        # for IPv6 the mask is a length, in the machine's byte order
        mask = struct.pack("=I", 128) if service.family == socket.AF_INET6 else b"\xff\xff\xff\xff"
        return self._lib.IPVSService(
            af=service.family,
            fwmark=service.mark,
            sched_name=service.scheduler,
            flags={"flags": service.flags, "mask": _ALL_FLAGS},
            timeout=0,
            netmask=socket.inet_ntoa(mask),
        )

    # --- destinations

    def set_destination(self, key: Key, destination: Destination, *, new: bool) -> None:
        service = self._lib.IPVSService(af=key[0], fwmark=key[1])
        described = self._lib.IPVSDest(
            addr_family=key[0],
            addr=str(destination.address),
            port=0,
            fwd_method=_MASQUERADE,
            weight=destination.weight,
        )
        self._call(self._ipvs.dest, "add" if new else "set", service, described)

    def delete_destination(self, key: Key, address: Address) -> None:
        service = self._lib.IPVSService(af=key[0], fwmark=key[1])
        self._call(self._ipvs.dest, "del", service, self._lib.IPVSDest(addr_family=key[0], addr=str(address), port=0))

    # --- settings of the namespace

    def tcp_timeout(self) -> int:
        """Seconds."""
        (reply,) = self._config(self._messages.IPVS_CMD_GET_CONFIG, _REQUEST)
        # the library does not know that it is a number: bytes, in hexadecimal
        shown = reply.get_attr("IPVS_CMD_ATTR_TIMEOUT_TCP")
        (seconds,) = struct.unpack("=I", bytes.fromhex(shown.replace(":", "")))
        return int(seconds)

    def set_tcp_timeout(self, seconds: int) -> None:
        value = struct.pack("=I", seconds)
        self._config(self._messages.IPVS_CMD_SET_CONFIG, _REQUEST_ACK, ("IPVS_CMD_ATTR_TIMEOUT_TCP", value))

    def _config(self, command: int, flags: int, *attributes: tuple[str, bytes]) -> list[Any]:
        message = self._messages.ipvsmsg()
        message["cmd"], message["version"], message["attrs"] = command, self._messages.GENL_VERSION, list(attributes)
        return self._call(self._ipvs.nlm_request, message, self._ipvs.prid, flags)

    def _call(self, what: Any, *args: Any) -> list[Any]:
        """The replies, without acknowledgements."""
        try:
            return [reply for reply in what(*args) if reply["header"]["type"] != ERROR]
        except self._error as error:
            raise OSError(error.code, os.strerror(error.code)) from error
