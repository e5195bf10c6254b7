"""How a service is balanced, as the labels of services and nodes say; the labels' one home."""

from collections.abc import Collection, Mapping

from hivemesh.model.errors import Invalid
from hivemesh.model.service import Balance, Scheduler

SCHEDULER_LABEL = "hivemesh.lb"
"""Of a service: how connections are spread over its tasks."""
BALANCER_LABEL = "hivemesh.balancer"
"""Of a service: which machinery spreads them; without it each node uses its own choice."""
PUBLISH_LABEL = "hivemesh.publish."
"""Of a service, with a published port behind it: where the port is open (see `ports.py`)."""
WEIGHT_LABEL = "hivemesh.weight"
"""Of a node: the share of connections its tasks get, against 1 of other nodes; 0 lets no new ones in."""
MAX_WEIGHT = 100
RESERVED = "hivemesh."
OF_SERVICES = (SCHEDULER_LABEL, BALANCER_LABEL, PUBLISH_LABEL)
OF_NODES = (WEIGHT_LABEL,)
_SCHEDULERS: Mapping[str, Scheduler] = {
    "rr": "rr",
    "wrr": "rr",
    "source": "source",
    "sh": "source",
    "maglev": "maglev",
    "mh": "maglev",
    "lc": "lc",
}
"""IPVS's own names are understood too. Weights count with every scheduler."""


def balance_of(labels: Mapping[str, str]) -> Balance:
    """What a service's labels ask for. Raises `Invalid`."""
    wanted = labels.get(SCHEDULER_LABEL, "rr")
    scheduler = _SCHEDULERS.get(wanted)
    if scheduler is None:
        raise Invalid(f"invalid label {SCHEDULER_LABEL}={wanted}: use one of {', '.join(_SCHEDULERS)}")
    # Counting connections is what only IPVS can do: asking for it is asking for IPVS
    engine = labels.get(BALANCER_LABEL, "ipvs" if scheduler == "lc" else None)
    match engine:
        case None:
            return Balance(scheduler=scheduler)
        case "nftables" if scheduler == "lc":
            raise Invalid(
                f"invalid label {SCHEDULER_LABEL}={wanted}: nftables does not count connections; use "
                f"{BALANCER_LABEL}=ipvs or another scheduler"
            )
        case "nftables" | "ipvs":
            return Balance(scheduler=scheduler, engine=engine)
        case _:
            raise Invalid(f"invalid label {BALANCER_LABEL}={engine}: use nftables or ipvs")


def weight_of(labels: Mapping[str, str]) -> int:
    """What a node's labels ask for, 1 by default. Raises `Invalid`."""
    text = labels.get(WEIGHT_LABEL, "1")
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= MAX_WEIGHT):
        raise Invalid(f"invalid label {WEIGHT_LABEL}={text}: use a number from 0 to {MAX_WEIGHT}")
    return int(text)


def check_labels(labels: Mapping[str, str], known: Collection[str]) -> None:
    """Labels of our own that mean nothing where they stand are slips. Raises `Invalid`.

    One of `known` that ends with a dot begins labels of its own.
    """
    families = tuple(name for name in known if name.endswith("."))
    for label in labels:
        if label.startswith(RESERVED) and label not in known and not label.startswith(families):
            names = ", ".join(f"{name}PORT" if name in families else name for name in known)
            raise Invalid(f"invalid label {label}: of the labels {RESERVED}* only {names} have a meaning here")
