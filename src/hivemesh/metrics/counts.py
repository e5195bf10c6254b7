"""What was summed up, as `hivemesh top` and the managers want it. Pure."""

from collections.abc import Mapping

from hivemesh.metrics import families as f
from hivemesh.metrics.tally import Tally
from hivemesh.wire.feed import BackendCount, Counts, PortRefusals, ServiceCount, VipCount


def counts_of(tally: Tally, node: str, at: float, names: Mapping[str, str]) -> Counts:
    """Of one node, at unix seconds `at`. `names` are those of tasks, by addresses that are nobody's on other nodes."""
    bytes_, vips = tally.of(f.BYTES.name), tally.of(f.VIP_CONNECTIONS.name)
    begun, refused = tally.of(f.CONNECTIONS.name), tally.of(f.REFUSED.name)
    backends = {labels[:4] for labels in (*begun, *bytes_)}
    dropped, carried = tally.of(f.SERVICE_DROPPED.name), tally.of(f.SERVICE_BYTES.name)
    return Counts(
        at=at,
        node=node,
        backends=tuple(
            BackendCount(
                service=service,
                protocol=protocol,
                port=_number(port),
                backend=backend,
                connections=begun.get((service, protocol, port, backend), 0),
                toward=bytes_.get((service, protocol, port, backend, "to_backend"), 0),
                back=bytes_.get((service, protocol, port, backend, "from_backend"), 0),
                name=names.get(backend, ""),
            )
            for service, protocol, port, backend in sorted(backends)
        ),
        refusals=tuple(
            PortRefusals(service=service, protocol=protocol, port=_number(port), refused=value)
            for (service, protocol, port), value in sorted(refused.items())
        ),
        vips=tuple(
            VipCount(
                service=service,
                network=network,
                connections=vips.get((service, network, "led"), 0),
                refused=vips.get((service, network, "refused"), 0),
            )
            for service, network in sorted({labels[:2] for labels in vips})
        ),
        services=tuple(
            ServiceCount(
                service=service,
                network=network,
                received=carried.get((service, network, "received"), 0),
                sent=carried.get((service, network, "sent"), 0),
                dropped=dropped.get((service, network), 0),
            )
            for service, network in sorted({labels[:2] for labels in carried})
        ),
    )


def _number(port: str) -> int:
    """0 of what was added up."""
    return int(port) if port.isdecimal() else 0
