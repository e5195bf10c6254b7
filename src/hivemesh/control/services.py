"""What users do to services: changes of intent in one transaction. The passes make tasks of it."""

import hashlib
from typing import Any

import msgspec

from hivemesh.control import lookup, validate
from hivemesh.model.errors import Invalid, OutOfSequence, Unsupported
from hivemesh.model.ids import ServiceID
from hivemesh.model.node import Node
from hivemesh.model.service import Placement, Service, ServiceSpec, UpdateStatus
from hivemesh.registry.reference import familiar
from hivemesh.store.tables import Transaction

OUT_OF_SEQUENCE = "update out of sequence"
UNORDERED = ("capability_add", "capability_drop", "configs", "groups", "mounts", "secrets", "ulimits")
"""Fields of a task's specification in which order means nothing; the engine sorts mounts by their targets."""
_QUALITIES = (
    "amber",
    "brave",
    "calm",
    "clever",
    "eager",
    "gentle",
    "lively",
    "lucid",
    "merry",
    "noble",
    "quiet",
    "witty",
)
_ANIMALS = ("badger", "bee", "crane", "falcon", "fox", "heron", "ibex", "lynx", "otter", "owl", "robin", "wren")


def create(tx: Transaction, spec: ServiceSpec, now: float, new_id: str) -> Service:
    """Raises `Invalid`, `NotFound`, `Conflict` or `Unsupported`."""
    if not spec.name:
        spec = msgspec.structs.replace(spec, name=_random_name(tx, new_id))
    spec = validate.service_spec(tx, spec)
    executed = now if spec.is_job else 0.0
    made = Service(
        id=ServiceID(new_id), spec=spec, created=now, updated=now, executed=executed, stale_version=tx.revision
    )
    return tx.put(made)


def update(
    tx: Transaction, reference: str, version: int, spec: ServiceSpec, now: float, *, rollback: bool = False
) -> Service:
    """Replace the specification; with `rollback` by the previous one, whatever `spec` is."""
    current = lookup.service(tx, reference)
    check_sequence(current, version)
    if rollback:
        if current.previous_spec is None:
            raise Invalid(f"service {reference} does not have a previous spec")
        spec = current.previous_spec
    spec = msgspec.structs.replace(spec, name=spec.name or current.spec.name)
    if spec.name != current.spec.name:
        raise Unsupported("renaming services is not supported: remove the service and create it under the new name")
    if spec.mode.name != current.spec.mode.name:
        raise Unsupported("service mode change is not allowed: remove the service and create it in the new mode")
    spec = validate.service_spec(tx, spec, current)
    updated = msgspec.structs.replace(
        current,
        spec=spec,
        stale_version=current.version,
        previous_spec=current.spec,
        previous_version=current.spec_version,
        update_status=None,  # clients take an old one for the end of the new update
        updated=now,
    )
    if _shape(spec) != _shape(current.spec):
        version, last = current.last_version + 1, current.last_version + 1
        if rollback:
            version, last = current.previous_version, current.last_version
            status = UpdateStatus(state="rollback_started", message="manually requested rollback", started=now)
            updated = msgspec.structs.replace(updated, update_status=status)
        updated = msgspec.structs.replace(updated, spec_version=version, last_version=last)
        if spec.is_job:
            updated = msgspec.structs.replace(updated, iteration=current.iteration + 1, executed=now)
    return tx.put(updated)


def check_sequence(current: Service | Node, version: int) -> None:
    """Raises `OutOfSequence` for who has not read the present specification.

    What managers themselves write meanwhile (the state of an update, of a node) is no reason: with Docker it is, and a
    command fails that ran at the wrong moment.
    """
    if not current.stale_version < version <= current.version:
        raise OutOfSequence(OUT_OF_SEQUENCE)


def remove(tx: Transaction, reference: str) -> Service:
    """The service is gone at once: its name, VIPs and ports are free; its tasks drain afterwards."""
    found = lookup.service(tx, reference)
    tx.delete(found)
    return found


def _shape(spec: ServiceSpec) -> tuple[object, ...]:
    """What tasks are made of. A change of placement alone moves only the tasks that no longer fit; whether names lead
    to a virtual address or to the tasks themselves is nothing a task knows of.

    A client that deploys the same again may leave out what was empty, and list in another order what has none.
    """
    template = msgspec.structs.replace(spec.task_template, placement=Placement())
    return _said(template), _said(spec.endpoint_spec.ports)


def _said(value: Any, field: str = "") -> Any:
    """Without what is empty, and what has no order in an order of its own."""
    if field == "image" and isinstance(value, str):
        return familiar(value)
    if isinstance(value, msgspec.Struct):
        default = type(value)()
        changed = [name for name in value.__struct_fields__ if getattr(value, name) != getattr(default, name)]
        said = {name: _said(getattr(value, name), name) for name in changed}
        return {name: inner for name, inner in said.items() if inner not in (None, "", (), {})}
    if isinstance(value, tuple):
        entries = [_said(inner) for inner in value]
        return tuple(sorted(entries, key=repr) if field in UNORDERED else entries)
    return value


def _random_name(tx: Transaction, new_id: str) -> str:
    taken = {service.spec.name for service in tx.all(Service)}
    digest = hashlib.sha256(new_id.encode()).digest()
    stem = f"{_QUALITIES[digest[0] % len(_QUALITIES)]}_{_ANIMALS[digest[1] % len(_ANIMALS)]}"
    return stem if stem not in taken else f"{stem}_{new_id[:6]}"
