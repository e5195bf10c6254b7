"""Placement constraints: `node.labels.zone == north`. Parsed once per text, matched against nodes."""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from hivemesh.model.errors import Invalid
from hivemesh.model.node import Node

KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE)
VALUE = re.compile(r"[a-zA-Z0-9:\-_\s.*()?+\[\]\\^$|/]+")
NODE_LABELS = "node.labels."
ENGINE_LABELS = "engine.labels."


@dataclass(frozen=True, slots=True)
class Constraint:
    """`equal` tells `==` from `!=`."""

    key: str
    equal: bool
    value: str

    def accepts(self, node: Node) -> bool:
        """Whether the node meets the constraint. An unknown key never matches; `!=` on a missing label does."""
        key = self.key.lower()
        if key.startswith(NODE_LABELS):
            return self._compare(node.spec.labels.get(self.key[len(NODE_LABELS) :]))
        if key.startswith(ENGINE_LABELS):
            return self._compare(node.description.labels.get(self.key[len(ENGINE_LABELS) :]))
        match key:
            case "node.id":
                return self._compare(node.id)
            case "node.hostname":
                return self._compare(node.description.hostname)
            case "node.role":
                return self._compare(node.spec.role)
            case "node.platform.os":
                return self._compare(node.description.os)
            case "node.platform.arch":
                return self._compare(node.description.architecture)
            case "node.ip":
                return self._inside(node.addr)
        return False

    def _compare(self, actual: str | None) -> bool:
        same = actual is not None and actual.lower() == self.value.lower()
        return same is self.equal

    def _inside(self, actual: str) -> bool:
        try:
            address, prefix = ipaddress.ip_address(actual), ipaddress.ip_network(self.value, strict=False)
        except ValueError:
            return False
        return (address in prefix) is self.equal


@lru_cache(maxsize=4096)
def parse(text: str) -> Constraint:
    """Raises `Invalid` with Docker's words."""
    for operator, equal in (("==", True), ("!=", False)):
        key, found, value = text.partition(operator)
        if not found:
            continue
        key, value = key.strip(), value.strip()
        if not KEY.fullmatch(key):
            raise Invalid(f"key '{key}' is invalid in constraint {text!r}")
        if not VALUE.fullmatch(value):
            raise Invalid(f"value '{value}' is invalid in constraint {text!r}")
        return Constraint(key, equal, value)
    raise Invalid(f"constraint expected one operator from ==, != in {text!r}, such as node.role==worker")


def accepts(texts: tuple[str, ...], node: Node) -> bool:
    """Whether the node meets all of them."""
    return all(parse(text).accepts(node) for text in texts)
