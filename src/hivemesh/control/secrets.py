"""What users do to secrets and configs, and what a service may use of them. Words are Docker's."""

import posixpath
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from hivemesh.control import lookup
from hivemesh.control.services import OUT_OF_SEQUENCE
from hivemesh.model import template
from hivemesh.model.errors import Conflict, Invalid, OutOfSequence
from hivemesh.model.ids import PayloadID
from hivemesh.model.secret import GOLANG, Config, Payload, PayloadSpec, Secret, config_path, payloads_of, secret_path
from hivemesh.model.service import ConfigReference, ContainerSpec, FileTarget, SecretReference, Service
from hivemesh.store.tables import Transaction, View

NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?")
LIMITS: dict[type[Payload], int] = {Secret: 500 * 1024, Config: 1000 * 1024}
"""Bytes that the data must stay below."""
HIGHEST_MODE = 0o7777
HIGHEST_ID = (1 << 32) - 2

P = TypeVar("P", Secret, Config)


def create(tx: Transaction, kind: type[P], spec: PayloadSpec, now: float, new_id: str) -> P:
    """Raises `Invalid` or `Conflict`."""
    if not NAME.fullmatch(spec.name):
        raise Invalid(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be "
            "[a-zA-Z0-9]"
        )
    if not 0 < len(spec.data) < LIMITS[kind]:
        raise Invalid(f"{word(kind)} data must be larger than 0 and less than {LIMITS[kind]} bytes")
    if spec.templating is not None:
        if spec.templating.name != GOLANG or spec.templating.options:
            raise Invalid(f"unrecognized template type {spec.templating.name!r}: use {GOLANG}, without options")
        template.check(spec.data.decode(errors="surrogateescape"), functions=True)
    if any(other.spec.name == spec.name for other in tx.all(kind)):
        raise Conflict(f"{word(kind)} {spec.name} already exists")
    return tx.put(kind(id=PayloadID(new_id), spec=spec, created=now, updated=now))


def update(tx: Transaction, kind: type[P], reference: str, version: int, spec: PayloadSpec, now: float) -> P:
    """Other labels. What else `spec` says must be as it is, or not be said."""
    current = lookup.payload(tx, kind, reference)
    if version != current.version:
        raise OutOfSequence(OUT_OF_SEQUENCE)
    same_data = not spec.data or spec.data == current.spec.data
    same_form = spec.templating is None or spec.templating == current.spec.templating
    if spec.name != current.spec.name or not same_data or not same_form:
        raise Invalid("only updates to Labels are allowed")
    changed = msgspec.structs.replace(current.spec, labels=spec.labels)
    return tx.put(msgspec.structs.replace(current, spec=changed, updated=now))


def remove(tx: Transaction, kind: type[P], reference: str) -> P:
    """Raises `Invalid` while a service uses it."""
    found = lookup.payload(tx, kind, reference)
    users = sorted(
        service.spec.name
        for service in tx.all(Service)
        if (kind, found.id) in payloads_of(service.spec.task_template.container_spec)
    )
    if users:
        services = "services" if len(users) > 1 else "service"
        raise Invalid(f"{word(kind)} '{found.spec.name}' is in use by the following {services}: {', '.join(users)}")
    tx.delete(found)
    return found


def check_references(view: View, container: ContainerSpec) -> None:
    """Raises `Invalid` unless all that the container uses exists and each has a place of its own."""
    secrets = [(_target(r, "secret"), r.secret_id, r.secret_name) for r in container.secrets]
    configs = [(_target(r, "config"), r.config_id, r.config_name) for r in container.configs]
    taken = {posixpath.normpath(mount.target): f"mount {mount.target}" for mount in container.mounts}
    _check_places("secret", ((secret_path(target), target.name, name) for target, _, name in secrets), taken)
    _check_places("config", ((config_path(target), target.name, name) for target, _, name in configs), taken)
    _check_known("secret", [n for _, i, n in secrets if (s := view.get(Secret, i)) is None or s.spec.name != n])
    _check_known("config", [n for _, i, n in configs if (c := view.get(Config, i)) is None or c.spec.name != n])


def _target(reference: SecretReference | ConfigReference, kind: str) -> FileTarget:
    identifier, name = (
        (reference.secret_id, reference.secret_name)
        if isinstance(reference, SecretReference)
        else (reference.config_id, reference.config_name)
    )
    target = reference.file
    if not identifier or not name:
        raise Invalid(f"malformed {kind} reference: it needs the id and the name of the {kind}")
    if target is None:
        raise Invalid(f"malformed {kind} reference, no target provided: {name} needs a File")
    parts = target.name.split("/")
    if not target.name.strip("/") or ".." in parts or "." in parts or "\0" in target.name:
        raise Invalid(f"malformed file {kind} reference, invalid target file name provided: {target.name!r}")
    for what, text in (("UID", target.uid), ("GID", target.gid)):
        if not (text.isascii() and text.isdecimal() and int(text) <= HIGHEST_ID):
            raise Invalid(f"{kind} {name}: invalid {what} {text!r}: use a number")
    if not 0 <= target.mode <= HIGHEST_MODE:
        raise Invalid(f"{kind} {name}: invalid mode {target.mode}: use permission bits, such as 292 for 0444")
    return target


def _check_places(kind: str, places: Iterable[tuple[str, str, str]], taken: dict[str, str]) -> None:
    """`taken` learns each (path, target as given, name): the later ones have to be elsewhere."""
    own: dict[str, str] = {}
    for path, target, name in places:
        if path in own:
            raise Invalid(f"{kind} references '{own[path]}' and '{name}' have a conflicting target: '{target}'")
        if path in taken:
            raise Invalid(f"{kind} reference '{name}' and {taken[path]} have a conflicting target: '{target}'")
        own[path] = name
    taken.update({path: f"{kind} reference '{name}'" for path, name in own.items()})


def _check_known(kind: str, missing: list[str]) -> None:
    if missing:
        raise Invalid(f"{kind}{'s' if len(missing) > 1 else ''} not found: {', '.join(missing)}")


def word(kind: type[Payload]) -> str:
    """As users call it."""
    return kind.__name__.lower()
