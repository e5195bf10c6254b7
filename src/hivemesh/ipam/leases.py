"""Addresses of one subnet: who holds which, and which comes next."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from hivemesh.model.addr import Address, Interface
from hivemesh.model.errors import Conflict, Exhausted
from hivemesh.model.network import Subnet


class Leases:
    """The addresses of one subnet, given out serially: after the last given comes the next, so that an address that
    was freed is not used again at once (its peers may still know its old owner).

    Kept as numbers, not as a bitmap: an IPv6 subnet has 2^64 of them.
    """

    def __init__(self, subnet: Subnet, after: int = 0) -> None:
        """`after` is the number of the last address given out (`last`); 0 begins at the lowest."""
        prefix = subnet.prefix
        given = subnet.ip_range or prefix
        self.subnet = subnet
        self._after = after
        self._given: list[int] = []
        self._first, self._end = int(given.network_address), int(given.broadcast_address)
        self._reserved: set[int] = set()
        self._held = {int(prefix.network_address), int(subnet.gateway), *map(int, subnet.reserved)}
        if prefix.version == 4:
            self._held.add(int(prefix.broadcast_address))

    def hold(self, address: Interface | Address) -> None:
        """What an object holds already. Addresses of other subnets are ignored."""
        if self.contains(address):
            self._held.add(int(address))

    def reserve(self, address: Interface | Address) -> None:
        """Given by `take` only. Addresses of other subnets are ignored."""
        if self.contains(address):
            self._reserved.add(int(address))

    def contains(self, address: Interface | Address) -> bool:
        """Whether `address` is of this subnet."""
        prefix = self.subnet.prefix
        return address.version == prefix.version and int(prefix.network_address) <= int(address) <= int(
            prefix.broadcast_address
        )

    @property
    def last(self) -> int:
        """The number after which `acquire` goes on: of the last address given."""
        return self._given[-1] if self._given else self._after

    @property
    def in_use(self) -> int:
        """Addresses that are held, those that nobody may have among them."""
        return len(self._held)

    @property
    def free(self) -> int:
        """Addresses that `acquire` can still give."""
        taken = self._held | self._reserved
        return self._end - self._first + 1 - sum(self._first <= number <= self._end for number in taken)

    def acquire(self) -> Interface:
        """The next free address. Raises `Exhausted`."""
        for low, high in ((max(self._first, self.last + 1), self._end), (self._first, min(self.last, self._end))):
            number = low
            while number in self._held or number in self._reserved:
                number += 1
            if number <= high:
                self._held.add(number)
                self._given.append(number)
                return self._interface(number)
        raise Exhausted(f"no free address in {self.subnet.ip_range or self.subnet.prefix}")

    def take(self, address: Address) -> Interface:
        """This very address. Raises `Conflict` when somebody holds it, or nobody may (gateway, network, broadcast)."""
        if int(address) in self._held:
            raise Conflict(f"address {address} is already in use or reserved")
        self._held.add(int(address))
        return self._interface(int(address))

    def release(self, address: Interface | Address) -> None:
        """Give back what `acquire` or `take` gave."""
        self._held.discard(int(address))

    def undo(self, address: Interface | Address) -> None:
        """As if `acquire` or `take` had not given it."""
        self.release(address)
        if int(address) in self._given:
            self._given.remove(int(address))

    def _interface(self, number: int) -> Interface:
        length = self.subnet.prefix.prefixlen
        if self.subnet.prefix.version == 4:
            return IPv4Interface((IPv4Address(number), length))
        return IPv6Interface((IPv6Address(number), length))
