"""Objects by the reference a user gives: full id, exact name, or unique beginning of the id, in this order."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from hivemesh.model.errors import Invalid, NotFound
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.secret import Config, Secret
from hivemesh.model.service import Service
from hivemesh.model.task import Task
from hivemesh.store.tables import View

T = TypeVar("T", Node, Network, Service, Task, Secret, Config)
P = TypeVar("P", Secret, Config)


def service(view: View, reference: str) -> Service:
    """Raises `NotFound` or, for several matches, `Invalid`; so do the others."""
    return _find("service", reference, view.get(Service, reference), view.all(Service), lambda s: s.spec.name)


def network(view: View, reference: str) -> Network:
    return _find("network", reference, view.get(Network, reference), view.all(Network), lambda n: n.spec.name)


def node(view: View, reference: str) -> Node:
    return _find("node", reference, view.get(Node, reference), view.all(Node), lambda n: n.description.hostname)


def task(view: View, reference: str) -> Task:
    return _find("task", reference, view.get(Task, reference), view.all(Task), None)


def payload(view: View, kind: type[P], reference: str) -> P:
    """A secret or a config."""
    return _find(kind.__name__.lower(), reference, view.get(kind, reference), view.all(kind), lambda p: p.spec.name)


def _find(kind: str, reference: str, exact: T | None, candidates: Iterable[T], name: Callable[[T], str] | None) -> T:
    if exact is not None:
        return exact
    if not reference:
        raise Invalid(f"a {kind} is needed: give its name or id")
    found = [value for value in candidates if name is not None and name(value) == reference]
    found = found or [value for value in candidates if value.id.startswith(reference)]
    if not found:
        raise NotFound(f"{kind} {reference} not found")
    if len(found) > 1:
        raise Invalid(f"{kind} {reference} is ambiguous ({len(found)} matches found)")
    return found[0]
