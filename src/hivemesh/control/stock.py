"""Generic resources of one node: what tasks hold, and what is left for others. Pure."""

from collections import Counter
from collections.abc import Iterable

from hivemesh.model.generic import GenericResource, discrete, named


class Stock:
    """What nobody holds yet. A kind is either counted or has names."""

    def __init__(self, resources: Iterable[GenericResource]) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}
        for resource in resources:
            if (counted := resource.discrete_resource_spec) is not None:
                self._counts[counted.kind] += counted.value
            elif (one := resource.named_resource_spec) is not None:
                self._names.setdefault(one.kind, []).append(one.value)

    def has(self, asked: Iterable[GenericResource]) -> bool:
        """Whether a task that asks for so many of each kind can be served."""
        return all(count <= self._left(kind) for kind, count in _sums(asked).items())

    def choose(self, asked: Iterable[GenericResource]) -> tuple[GenericResource, ...]:
        """What a task gets, the first names first; it holds them once they were taken."""
        chosen: list[GenericResource] = []
        for kind, count in _sums(asked).items():
            if kind in self._names:
                chosen.extend(named(kind, name) for name in self._names[kind][:count])
            else:
                chosen.append(discrete(kind, count))
        return tuple(chosen)

    def holds(self, given: Iterable[GenericResource]) -> bool:
        """Whether exactly these are here and free: names, and so many of what is counted."""
        counts: Counter[str] = Counter()
        for resource in given:
            if (counted := resource.discrete_resource_spec) is not None:
                counts[counted.kind] += counted.value
            elif (one := resource.named_resource_spec) is not None and one.value not in self._names.get(one.kind, ()):
                return False
        return all(count <= self._counts[kind] for kind, count in counts.items())

    def take(self, given: Iterable[GenericResource]) -> None:
        """They belong to a task now. What is not here, since the node has lost it, is ignored."""
        for resource in given:
            if (counted := resource.discrete_resource_spec) is not None:
                self._counts[counted.kind] -= counted.value
            elif (one := resource.named_resource_spec) is not None and one.value in self._names.get(one.kind, ()):
                self._names[one.kind].remove(one.value)

    def _left(self, kind: str) -> int:
        return len(self._names[kind]) if kind in self._names else self._counts[kind]


def _sums(asked: Iterable[GenericResource]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for resource in asked:
        if resource.discrete_resource_spec is not None and resource.discrete_resource_spec.value > 0:
            sums[resource.discrete_resource_spec.kind] += resource.discrete_resource_spec.value
    return sums
