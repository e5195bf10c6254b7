"""Options of `service create` and `service update` that say which names a container knows and when it is healthy."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from hivemesh.cli import values
from hivemesh.cli.servicespec import Decorator, Json, changed_list, decorated, option
from hivemesh.model.errors import Invalid, NotFound

LISTS = {
    "dns": ("Nameservers", "ADDR", "Name server for the container"),
    "dns_search": ("Search", "DOMAIN", "Domain that short names are tried in"),
    "dns_option": ("Options", "OPTION", "Resolver option such as ndots:2"),
}
"""Option (`--dns`, `--dns-search`, ...) to its field in `DNSConfig`, its value and what it is for."""

HEALTH: tuple[Decorator, ...] = (
    option("--health-cmd", metavar="COMMAND", help="Command that tells whether the container is healthy."),
    option("--health-interval", metavar="DURATION", help="Time between two looks (default 30s)."),
    option("--health-timeout", metavar="DURATION", help="Time a look may take (default 30s)."),
    option("--health-retries", type=click.IntRange(0), metavar="N", help="Failures in a row that count (default 3)."),
    option("--health-start-period", metavar="DURATION", help="Time to start, in which failures do not count."),
    option("--health-start-interval", metavar="DURATION", help="Time between two looks while it starts (default 5s)."),
    option("--no-healthcheck", is_flag=True, help="Ignore the image's own health check."),
)


def create_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is new: lists as a whole."""
    added = [
        option(_name(key), multiple=True, metavar=value, help=f"{what}; may be repeated.")
        for key, (_, value, what) in LISTS.items()
    ]
    hosts = option("--host", multiple=True, metavar="NAME:ADDR", help="Line for /etc/hosts; may be repeated.")
    return decorated(command, (*added, hosts, *HEALTH))


def update_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is there: `-add` and `-rm` of each."""
    changed = []
    for key, (_, value, what) in LISTS.items():
        changed.append(option(f"{_name(key)}-add", multiple=True, metavar=value, help=f"{what}; may be repeated."))
        changed.append(option(f"{_name(key)}-rm", multiple=True, metavar=value, help="One less; may be repeated."))
    changed.append(
        option("--host-add", multiple=True, metavar="NAME:ADDR", help="Line for /etc/hosts; may be repeated.")
    )
    changed.append(
        option("--host-rm", multiple=True, metavar="NAME[:ADDR]", help="Remove such lines; may be repeated.")
    )
    return decorated(command, (*changed, *HEALTH))


def apply_created(container: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `create_options` into a container's specification, in place."""
    dns = {field: list(given[key]) for key, (field, _, _) in LISTS.items() if given[key]}
    if dns:
        container["DNSConfig"] = dns
    container["Hosts"] = [_host_line(text) for text in given["host"]]
    _apply_health(container, given)


def apply_updated(container: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `update_options` into a container's specification, in place."""
    dns: Json = dict(container.get("DNSConfig") or {})
    for key, (field, _, _) in LISTS.items():
        add, remove = given[f"{key}_add"], given[f"{key}_rm"]
        dns[field] = changed_list(dns.get(field) or (), add, remove, f"{_name(key)[2:]} entry")
    container["DNSConfig"] = {field: entries for field, entries in dns.items() if entries}
    container["Hosts"] = _changed_hosts(container.get("Hosts") or (), given["host_add"], given["host_rm"])
    _apply_health(container, given)


def _name(key: str) -> str:
    return "--" + key.replace("_", "-")


def _host_line(text: str) -> str:
    """`/etc/hosts` has the address first."""
    name, separator, address = text.partition(":")
    if not separator or not name or not address:
        raise Invalid(f"invalid host {text!r}: write name:address")
    return f"{address} {name}"


def _changed_hosts(before: Iterable[str], add: Iterable[str], remove: Iterable[str]) -> list[str]:
    left = list(before)
    for text in remove:
        name, _, address = text.partition(":")
        kept = [line for line in left if not _says(line, name, address)]
        if len(kept) == len(left):
            raise NotFound(f"this service has no host {text}")
        left = kept
    return left + [line for line in map(_host_line, add) if line not in left]


def _says(line: str, name: str, address: str) -> bool:
    found, *names = line.split()
    return name in names and address in ("", found)


def _apply_health(container: Json, given: Mapping[str, Any]) -> None:
    check: Json = dict(container.get("Healthcheck") or {})
    changes: Json = {}
    for key, field, convert in (
        ("health_interval", "Interval", values.duration),
        ("health_timeout", "Timeout", values.duration),
        ("health_retries", "Retries", int),
        ("health_start_period", "StartPeriod", values.duration),
        ("health_start_interval", "StartInterval", values.duration),
    ):
        if given[key] is not None:
            changes[field] = convert(given[key])
    if given["health_cmd"] is not None:
        changes["Test"] = ["CMD-SHELL", given["health_cmd"]] if given["health_cmd"] else []
    if given["no_healthcheck"]:
        if changes:
            raise Invalid("--no-healthcheck conflicts with --health-* options")
        container["Healthcheck"] = {"Test": ["NONE"]}
    elif changes:
        if check.get("Test") == ["NONE"]:
            del check["Test"]
        container["Healthcheck"] = check | changes
