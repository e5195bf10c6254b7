"""What registries are shown for the images of services. It is kept beside the service: nobody can read it back."""

from hivemesh.model.ids import PayloadID
from hivemesh.model.secret import Credential, PayloadSpec
from hivemesh.model.service import Service
from hivemesh.store.tables import Transaction


def keep(tx: Transaction, service: Service, given: str, source: str) -> None:
    """After a service was made or changed: use what was `given`, else what was there; with `source` previous-spec, what
    was there before.
    """
    known = tx.get(Credential, service.id)
    before = (known.spec.data, known.previous) if known is not None else (b"", b"")
    data = given.encode() or (before[1] if source == "previous-spec" else before[0])
    if not data and known is None:
        return
    spec = PayloadSpec(name=service.spec.name, data=data)
    previous = before[0] if data != before[0] else before[1]
    kept = Credential(id=PayloadID(service.id), spec=spec, previous=previous)
    if known is None or (kept.spec, kept.previous) != (known.spec, known.previous):
        tx.put(kept)


def forget(tx: Transaction, service: Service) -> None:
    """The service is gone."""
    known = tx.get(Credential, service.id)
    if known is not None:
        tx.delete(known)
