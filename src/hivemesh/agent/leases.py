"""Addresses of sandboxes on the gateway bridge, and the host ports nobody chose: granted here, known nowhere else.

They are kept in a small file, so that a restarted daemon gives every sandbox what it already has. Numbers are handed
out in turn: one that was just given back is the last to be used again, when nobody remembers it any more.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

import msgspec

from hivemesh.agent.private import refused, write_private
from hivemesh.dataplane.plan.facts import GatewayLease, HostFacts
from hivemesh.model.errors import Exhausted
from hivemesh.model.ids import TaskID
from hivemesh.model.service import PortConfig

log = logging.getLogger("hivemesh.leases")

FIRST = 3
"""The network itself, the bridge and `ingress_sbox` have the numbers 0 to 2."""
HOST_PORTS = range(49153, 65536)
"""Host-mode ports that the user left open (Docker takes them from the ephemeral range too)."""


class _Lease(msgspec.Struct):
    number: int
    ports: dict[str, int] = {}  # "tcp/80" (protocol and target port; then "tcp/80/2", …) to the host's port


class _File(msgspec.Struct):
    next: int = FIRST
    next_port: int = HOST_PORTS.start
    leases: dict[TaskID, _Lease] = {}


class Leases:
    """What the sandboxes of this node hold."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state = msgspec.json.decode(path.read_bytes(), type=_File)
        except (OSError, msgspec.MsgspecError):  # a fresh node, or a torn file: sandboxes are moved to new addresses
            self._state = _File()

    def __contains__(self, task: TaskID) -> bool:
        return task in self._state.leases

    def acquire(self, task: TaskID, facts: HostFacts) -> GatewayLease:
        """The lease of `task`, which may have it already. Raises `Exhausted`; `Unavailable` when the disk refuses."""
        known = self._state.leases.get(task)
        last = facts.gateway4.network.num_addresses - 2  # the very last is the broadcast address
        if known is None or known.number > last:
            taken = {lease.number for lease in self._state.leases.values()}
            number = _in_turn(self._state.next, range(FIRST, last + 1), taken)
            if number is None:
                raise Exhausted(f"no address is free on the gateway bridge ({facts.gateway4.network})")
            self._state.next = number + 1
            self._state.leases[task] = _Lease(number)
            try:
                self._save()
            except OSError as error:
                self._put_back(task, known)
                raise refused(self._path, error) from error
            known = self._state.leases[task]
        v4, v6 = facts.gateway4.network, facts.gateway6.network
        return GatewayLease(
            v4=IPv4Interface((v4.network_address + known.number, v4.prefixlen)),
            v6=IPv6Interface((v6.network_address + known.number, v6.prefixlen)),
        )

    def host_ports(
        self, task: TaskID, ports: Iterable[PortConfig], busy: Callable[[], Collection[tuple[str, int]]] = tuple
    ) -> tuple[PortConfig, ...]:
        """The host-mode ports among `ports`, with real numbers. `task` has a lease. Raises `Exhausted`, or
        `Unavailable` when the disk refuses.

        `busy` says, by protocol, which numbers this node uses for anything else; it is asked only when one is chosen.
        """
        lease = self._state.leases[task]
        found: list[PortConfig] = []
        targets: Counter[str] = Counter()
        for port in ports:
            if port.publish_mode != "host":
                continue
            if not port.published_port:
                key = f"{port.protocol}/{port.target_port}"
                targets[key] += 1
                if targets[key] > 1:  # one target published several times
                    key = f"{key}/{targets[key]}"
                if key not in lease.ports:
                    taken = {number for other in self._state.leases.values() for number in other.ports.values()}
                    taken |= {number for protocol, number in busy() if protocol == port.protocol}
                    number = _in_turn(self._state.next_port, HOST_PORTS, taken)
                    if number is None:
                        raise Exhausted(f"no host port from {HOST_PORTS.start} up is free")
                    self._state.next_port = number + 1
                    lease.ports[key] = number
                    try:
                        self._save()
                    except OSError as error:
                        del lease.ports[key]
                        raise refused(self._path, error) from error
                port = msgspec.structs.replace(port, published_port=lease.ports[key])
            found.append(port)
        return tuple(found)

    def release(self, task: TaskID) -> None:
        """Give back; what is not held is fine."""
        if self._state.leases.pop(task, None):
            self._try_to_save()

    def keep(self, tasks: Collection[TaskID]) -> None:
        """Give back what all others hold."""
        kept = {task: lease for task, lease in self._state.leases.items() if task in tasks}
        if len(kept) != len(self._state.leases):
            self._state.leases = kept
            self._try_to_save()

    def _put_back(self, task: TaskID, lease: _Lease | None) -> None:
        if lease is None:
            del self._state.leases[task]
        else:
            self._state.leases[task] = lease

    def _try_to_save(self) -> None:
        """What was given back and is still in the file costs a number until the next change is written, no more."""
        try:
            self._save()
        except OSError as error:
            log.warning("%s", refused(self._path, error))

    def _save(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._path, msgspec.json.encode(self._state), durable=False)


def _in_turn(start: int, numbers: range, taken: Collection[int]) -> int | None:
    """The first free number from `start` on, beginning again at the end."""
    if start not in numbers:
        start = numbers.start
    turn = (*range(start, numbers.stop), *range(numbers.start, start)) if len(taken) < len(numbers) else ()
    return next((number for number in turn if number not in taken), None)
