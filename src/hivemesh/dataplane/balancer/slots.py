"""Which target stands in which slot: small tables that are the same on every node and after every restart.

A connection's slot is a counter (in turn) or a hash of the client's address. Slots in turn are interleaved, so that a
target of weight 3 beside one of weight 1 gets A A B A, not A A A B. Targets of equal weight stand in the order of their
addresses; these are handed out in ascending order, so that growing adds a last slot.

Consistent slots are those of Maglev (Eisenbud et al., NSDI 2016, section 3.4): each target has a permutation of the
table of its own, and they take free slots in turn. One that leaves moves its own slots and few others.
"""

from collections.abc import Sequence
from functools import reduce
from hashlib import blake2b
from math import gcd

from hivemesh.dataplane.balancer.api import Target
from hivemesh.model.addr import Address

MOST_SLOTS = 1024
"""In turn: weights that need more slots than that are rounded."""
MAGLEV_SIZES = (251, 4093)
"""Primes. The paper wants a table 100 times as large as the number of targets for shares equal to 1 %; the small one
serves up to 50 targets (largest share 1.2 times the smallest), the large one all others."""
_SMALL_LIMIT = 50


def in_turn(found: Sequence[Target]) -> tuple[Address, ...]:
    """One cycle; each target has a slot at least: the n-th of w slots, from 0, stands (n + 1/2) / w into the cycle."""
    weights = _shares([t.weight for t in found])
    if set(weights) <= {1}:
        return tuple(t.address for t in found)
    # equal fractions are equal as floats: division rounds correctly, on every machine
    places = sorted(((2 * n + 1) / (2 * w), which) for which, w in enumerate(weights) for n in range(w))
    return tuple(found[which].address for _, which in places)


def _shares(weights: list[int]) -> list[int]:
    """The smallest whole numbers in the same proportion, rounded where that would be too many."""
    if not weights:
        return []
    common = reduce(gcd, weights)
    shares = [w // common for w in weights]
    total = sum(shares)
    return shares if total <= MOST_SLOTS else [max(1, round(w * MOST_SLOTS / total)) for w in shares]


def consistent(found: Sequence[Target]) -> tuple[Address, ...]:
    """Maglev's table: a target of twice the weight takes two slots in its turn."""
    if not found:
        return ()
    size = MAGLEV_SIZES[0] if len(found) <= _SMALL_LIMIT else MAGLEV_SIZES[1]
    largest = max(t.weight for t in found)
    walks = [_walk(t.address, size) for t in found]
    due = [0.0] * len(found)
    table: list[Address | None] = [None] * size
    free = size
    while True:
        for n, target in enumerate(found):
            due[n] += target.weight / largest
            if due[n] < 1:
                continue
            due[n] -= 1
            offset, skip, step = walks[n]
            slot = (offset + step * skip) % size
            while table[slot] is not None:
                step += 1
                slot = (offset + step * skip) % size
            table[slot] = target.address
            walks[n] = offset, skip, step + 1
            free -= 1
            if not free:
                return tuple(address for address in table if address is not None)


def _walk(address: Address, size: int) -> tuple[int, int, int]:
    """Offset and skip of a target's permutation, and how far it has come."""
    digest = blake2b(address.packed, digest_size=8).digest()
    one, two = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")
    return one % size, two % (size - 1) + 1, 0
