"""Options of `service create` and `service update` as changes to a service's specification (the API's JSON)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from hivemesh.cli import values
from hivemesh.model.errors import Invalid, NotFound

CONDITIONS = click.Choice(["none", "on-failure", "any"])
Json = dict[str, Any]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def option(*names: str, **settings: Any) -> Decorator:
    return click.option(*names, **settings)


def rollout_options(kind: str, actions: tuple[str, ...]) -> tuple[Decorator, ...]:
    """How an update, or a rollback, replaces tasks."""
    return (
        option(f"--{kind}-parallelism", type=click.IntRange(0), metavar="N", help="Tasks replaced at once (0: all)."),
        option(f"--{kind}-delay", metavar="DURATION", help="Pause between replacements."),
        option(f"--{kind}-monitor", metavar="DURATION", help="How long a new task has to last (default 5s)."),
        option(f"--{kind}-failure-action", type=click.Choice(actions), help="When new tasks fail (default pause)."),
        option(
            f"--{kind}-max-failure-ratio", type=click.FloatRange(0, 1), metavar="R", help="How many may (default 0)."
        ),
        option(f"--{kind}-order", type=click.Choice(["stop-first", "start-first"]), help="Which of old and new."),
    )


SHARED: tuple[Decorator, ...] = (
    option("--replicas", type=click.IntRange(0), metavar="N", help="How many tasks."),
    option("--hostname", metavar="NAME", help="Host name in the container."),
    option("-u", "--user", metavar="USER[:GROUP]", help="User in the container."),
    option("-w", "--workdir", metavar="DIR", help="Working directory in the container."),
    option("--entrypoint", metavar="COMMAND", help="Program to run instead of the image's."),
    option("--read-only/--no-read-only", default=None, help="Root file system read-only."),
    option("--init/--no-init", default=None, help="Run an init in front of the program."),
    option("-t", "--tty/--no-tty", default=None, help="Give the program a terminal."),
    option("--stop-signal", metavar="SIGNAL", help="Signal that asks the program to stop."),
    option("--stop-grace-period", metavar="DURATION", help="How long to wait until it is killed (default 10s)."),
    option(
        "--restart-condition",
        type=click.Choice(["none", "on-failure", "any"]),
        help="When to replace a task that ended.",
    ),
    option("--restart-delay", metavar="DURATION", help="How long to wait before (default 5s)."),
    option("--restart-max-attempts", type=click.IntRange(0), metavar="N", help="How often at most (0: for ever)."),
    option("--restart-window", metavar="DURATION", help="Time in which attempts are counted."),
    option("--limit-cpu", metavar="N", help="CPUs a task may use."),
    option("--limit-memory", metavar="SIZE", help="Memory a task may use."),
    option("--limit-pids", type=click.IntRange(0), metavar="N", help="Processes a task may have (0: no limit)."),
    option("--replicas-max-per-node", type=click.IntRange(0), metavar="N", help="Tasks per node (0: no limit)."),
    *rollout_options("update", ("pause", "continue", "rollback")),
    *rollout_options("rollback", ("pause", "continue")),
    option("--max-concurrent", type=click.IntRange(0), metavar="N", help="Of a job: how many tasks at a time."),
    option("--endpoint-mode", type=click.Choice(["vip", "dnsrr"]), help="Virtual address, or one name for all tasks."),
)
"""Options that mean the same when a service is made and when it is changed; absent means: leave as it is."""


def decorated(command: Callable[..., Any], decorators: Iterable[Decorator]) -> Callable[..., Any]:
    """With options that are listed in their order."""
    for decorate in reversed(tuple(decorators)):
        command = decorate(command)
    return command


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return decorated(command, SHARED)


def apply_shared(spec: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `SHARED` into a specification, in place."""
    template = spec.setdefault("TaskTemplate", {})
    container = template.setdefault("ContainerSpec", {})
    for name, key, convert in (
        ("hostname", "Hostname", str),
        ("user", "User", str),
        ("workdir", "Dir", str),
        ("entrypoint", "Command", str.split),
        ("read_only", "ReadOnly", bool),
        ("init", "Init", bool),
        ("tty", "TTY", bool),
        ("stop_signal", "StopSignal", str),
        ("stop_grace_period", "StopGracePeriod", values.duration),
    ):
        _put(container, key, given[name], convert)
    restart: Json = template.setdefault("RestartPolicy", {})
    _put(restart, "Condition", given["restart_condition"], str)
    _put(restart, "Delay", given["restart_delay"], values.duration)
    _put(restart, "MaxAttempts", given["restart_max_attempts"], int)
    _put(restart, "Window", given["restart_window"], values.duration)
    limits: Json = template.setdefault("Resources", {}).get("Limits") or {}
    _put(limits, "NanoCPUs", given["limit_cpu"], values.cpus)
    _put(limits, "MemoryBytes", given["limit_memory"], values.size)
    _put(limits, "Pids", given["limit_pids"], int)
    if limits:
        template["Resources"]["Limits"] = limits
    _put(template.setdefault("Placement", {}), "MaxReplicas", given["replicas_max_per_node"], int)
    for kind, key in (("update", "UpdateConfig"), ("rollback", "RollbackConfig")):
        config: Json = spec.get(key) or {}
        _put(config, "Parallelism", given[f"{kind}_parallelism"], int)
        _put(config, "Delay", given[f"{kind}_delay"], values.duration)
        _put(config, "Monitor", given[f"{kind}_monitor"], values.duration)
        _put(config, "FailureAction", given[f"{kind}_failure_action"], str)
        _put(config, "MaxFailureRatio", given[f"{kind}_max_failure_ratio"], float)
        _put(config, "Order", given[f"{kind}_order"], str)
        if config:
            spec[key] = {"Parallelism": 1} | config
    _put(spec.setdefault("EndpointSpec", {}), "Mode", given["endpoint_mode"], str)
    apply_mode(spec.setdefault("Mode", {"Replicated": {"Replicas": 1}}), given["replicas"], given["max_concurrent"])


def apply_mode(mode: Json, replicas: int | None, max_concurrent: int | None = None) -> None:
    """How many, where the mode leaves it open."""
    if replicas is not None:
        if "Replicated" in mode:
            mode["Replicated"]["Replicas"] = replicas
        elif "ReplicatedJob" in mode:
            mode["ReplicatedJob"]["TotalCompletions"] = replicas
        else:
            raise Invalid("--replicas is for replicated services and jobs; a global one has a task on each node")
    if max_concurrent is not None:
        if "ReplicatedJob" not in mode:
            raise Invalid("--max-concurrent is for replicated jobs: use it with --mode replicated-job")
        mode["ReplicatedJob"]["MaxConcurrent"] = max_concurrent


def _put(target: Json, key: str, value: Any, convert: Callable[[Any], Any]) -> None:
    if value is not None:
        target[key] = convert(value)


def published(texts: Iterable[str]) -> list[Json]:
    return [port for text in texts for port in values.ports(text)]


def without_ports(ports: Iterable[Json], texts: Iterable[str]) -> list[Json]:
    """Less the ports named by target port (`80`, `80/udp`) or as they were published (`8080:80`)."""
    left = list(ports)
    for text in texts:
        by_target = ":" not in text and "=" not in text
        for wanted in values.ports(text):
            gone = [port for port in left if _same(port, wanted, by_target)]
            if not gone:
                raise NotFound(f"port {text} is not published by this service")
            left = [port for port in left if port not in gone]
    return left


def _same(port: Json, wanted: Json, by_target: bool) -> bool:
    if port["Protocol"] != wanted["Protocol"] or port["TargetPort"] != wanted["TargetPort"]:
        return False
    return by_target or not wanted["PublishedPort"] or port["PublishedPort"] == wanted["PublishedPort"]


def changed_list(before: Iterable[str], add: Iterable[str], remove: Iterable[str], what: str) -> list[str]:
    """A list of texts with some removed and some added at the end."""
    left = list(before)
    for text in remove:
        if text not in left:
            raise NotFound(f"this service has no {what} {text}")
        left.remove(text)
    return left + [text for text in add if text not in left]


def changed_env(before: Iterable[str], add: Iterable[str], remove: Iterable[str]) -> list[str]:
    """Variables, the later of one name replacing the earlier."""
    found = {text.partition("=")[0]: text for text in before}
    for name in remove:
        if name not in found:
            raise NotFound(f"this service has no environment variable {name}")
        del found[name]
    return list((found | {text.partition("=")[0]: text for text in add}).values())


def changed_labels(before: Mapping[str, str] | None, add: Iterable[str], remove: Iterable[str]) -> dict[str, str]:
    labels = dict(before or {})
    for key in remove:
        if key not in labels:
            raise NotFound(f"this service has no label {key}")
        del labels[key]
    return labels | values.pairs(add)
