"""Placement constraints: `node.labels.zone == north`. Parsed once per text, matched against nodes."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from hivemesh.model.errors import Invalid
from hivemesh.model.node import Node

KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE)
VALUE = re.compile(r"[a-zA-Z0-9:\-_\s.*()?+\[\]\\^$|/]+")
NODE_LABELS = "node.labels."
ENGINE_LABELS = "engine.labels."


ATTRIBUTES: Mapping[str, Callable[[Node], str]] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.description.hostname,
    "node.role": lambda node: node.spec.role,
    "node.ip": lambda node: node.addr,
    "node.platform.os": lambda node: node.description.os,
    "node.platform.arch": lambda node: node.description.architecture,
}


@lru_cache(maxsize=4096)
def _reader(key: str) -> Callable[[Node], str | None] | None:
    """How to find out what a node has there; None for a key that is not known."""
    lower = key.lower()
    if lower.startswith(NODE_LABELS):
        label = key[len(NODE_LABELS) :]
        return (lambda node: node.spec.labels.get(label)) if label else None
    if lower.startswith(ENGINE_LABELS):
        label = key[len(ENGINE_LABELS) :]
        return (lambda node: node.description.labels.get(label)) if label else None
    return ATTRIBUTES.get(lower)


def is_known(key: str) -> bool:
    """Whether `key` (the case of all but a label's name does not matter) is something nodes have."""
    return _reader(key) is not None


def attribute(key: str, node: Node) -> str | None:
    """What the node has there; None for a label it lacks, and for a key that is not known."""
    read = _reader(key)
    return read(node) if read is not None else None


@dataclass(frozen=True, slots=True)
class Constraint:
    """`equal` tells `==` from `!=`."""

    key: str
    equal: bool
    value: str

    def accepts(self, node: Node) -> bool:
        """Whether the node meets the constraint. An unknown key never matches; `!=` on a missing label does."""
        read = _reader(self.key)
        if read is None:
            return False
        actual = read(node)
        if self.key.lower() == "node.ip":
            return self._inside(actual or "")
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
