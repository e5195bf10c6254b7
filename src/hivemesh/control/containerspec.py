"""What may be asked of a container, whoever asks: pure checks that raise `Invalid`. Texts follow Docker's."""

import re

from hivemesh.control import mounts, privileges
from hivemesh.engine.processes import signal_number
from hivemesh.model import template
from hivemesh.model.addr import parse_address
from hivemesh.model.container import ContainerSpec, DNSConfig, HealthConfig
from hivemesh.model.errors import Invalid

HOSTNAME_LENGTH = 64
"""The kernel's limit (`HOST_NAME_MAX`)."""
NAME_LENGTH = 253
"""Of a name in the DNS, without the final dot (RFC 1035)."""
SHORTEST = 1_000_000
"""Nanoseconds: no duration of a health check but 0, the default, is below a millisecond."""
HEALTH_KINDS = ("NONE", "CMD", "CMD-SHELL")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
"""Names in the DNS; with underscores, which names of services and containers have."""
WORD = re.compile(r"[!-~]+")
"""Printable ASCII without blanks: what fits into a line of a resolver's configuration."""


def check(container: ContainerSpec) -> None:
    """Raises `Invalid`."""
    if not container.image:
        raise Invalid("ContainerSpec: image reference must be provided")
    if re.search(r"[\s\x00-\x1f]", container.image) or container.image.startswith("-"):
        raise Invalid(f'ContainerSpec: "{container.image}" is not a valid repository/tag')
    for variable in container.env:
        if not variable.partition("=")[0] or "\0" in variable:
            raise Invalid(f"ContainerSpec: invalid environment variable {variable!r}: expected NAME=value")
    if container.stop_grace_period < 0:
        raise Invalid("ContainerSpec: stop-grace-period cannot be negative")
    check_names(container)
    if container.healthcheck is not None:
        _health(container.healthcheck)
    if container.dir and not container.dir.startswith("/"):
        raise Invalid(f"ContainerSpec: the working directory {container.dir!r} is invalid: it needs an absolute path")
    if "" in container.labels:
        raise Invalid("ContainerSpec: a label needs a name: expected key=value")
    try:
        signal_number(container.stop_signal)
    except ValueError as error:
        raise Invalid(f"ContainerSpec.StopSignal: {error}: use a name such as SIGTERM, or a number") from None
    mounts.check(container.mounts)
    privileges.check(container)


def check_names(container: ContainerSpec) -> None:
    """What concerns names: the container's own, those in its hosts file, and where it asks."""
    template.check(container.hostname)
    plain = template.without(container.hostname)
    if container.hostname and (len(plain) > HOSTNAME_LENGTH or not NAME.fullmatch(plain)):
        raise Invalid(
            f"invalid hostname {container.hostname!r}: use letters, digits, - and dots, at most {HOSTNAME_LENGTH} "
            "characters"
        )
    for line in container.hosts:
        address, *names = line.split(" ")
        parse_address(address, "address in extra host")
        if not names:
            raise Invalid(f"invalid extra host {line!r}: expected an address and a name")
        for name in names:
            check_name(name, "extra host")
    if container.dns_config is not None:
        _dns(container.dns_config)


def check_name(text: str, what: str) -> None:
    """`what` says in errors what the name is for."""
    if len(text) > NAME_LENGTH or not NAME.fullmatch(text):
        raise Invalid(
            f"invalid {what} {text!r}: not a host name; use letters, digits, - and _, with dots between parts of at "
            "most 63 characters"
        )


def _dns(config: DNSConfig) -> None:
    for server in config.nameservers:
        parse_address(server, "DNS server")
    for domain in config.search:
        if domain != ".":  # Docker's way to say: no search list at all
            check_name(domain.rstrip("."), "DNS search domain")
    for option in config.options:
        if not WORD.fullmatch(option):
            raise Invalid(f"invalid DNS option {option!r}: expected one word such as ndots:2 or rotate")


def _health(check: HealthConfig) -> None:
    if check.test and check.test[0] not in HEALTH_KINDS:
        raise Invalid(f"ContainerSpec: Unknown healthcheck type {check.test[0]!r}: use {', '.join(HEALTH_KINDS)}")
    if check.test and check.test[0] != "NONE" and not any(check.test[1:]):
        raise Invalid(f"ContainerSpec: a healthcheck of type {check.test[0]} needs a command")
    for value, field in (
        (check.interval, "Interval"),
        (check.timeout, "Timeout"),
        (check.start_period, "StartPeriod"),
        (check.start_interval, "StartInterval"),
    ):
        if value < 0 or 0 < value < SHORTEST:
            raise Invalid(f"ContainerSpec: {field} in HealthConfig cannot be less than 1ms")
    if check.retries < 0:
        raise Invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
