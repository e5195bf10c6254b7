"""Options of `service create` and `service update` that say what a container has and what it may do."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from hivemesh.cli import values
from hivemesh.cli.mounts import mount
from hivemesh.cli.servicespec import Decorator, Json, changed_env, changed_labels, changed_list, decorated, option
from hivemesh.model.errors import Invalid, NotFound, Unsupported
from hivemesh.model.privilege import ALL

MANY: dict[str, Any] = {"multiple": True}
RESET = "RESET"
"""Docker's word for: no longer what was said before."""

SAME: tuple[Decorator, ...] = (
    option("--cap-add", metavar="CAP", help="Capability to add; may be repeated.", **MANY),
    option("--cap-drop", metavar="CAP", help="Capability to drop; may be repeated.", **MANY),
    option("--log-driver", metavar="DRIVER", help="Where output goes: json-file, journald or none."),
    option("--log-opt", metavar="KEY=VALUE", help="Option of the log driver, such as max-size=10m.", **MANY),
    option("--oom-score-adj", type=click.IntRange(-1000, 1000), metavar="N", help="Rather this one when memory ends."),
    option("--memory-swap", metavar="SIZE", help="Swap on top of the limit of memory (-1: no limit)."),
    option("--memory-swappiness", type=click.IntRange(-1, 100), metavar="N", help="How readily memory is swapped out."),
    option("--isolation", metavar="MODE", help="Only default: containers of Linux know no other."),
    option("--credential-spec", metavar="SPEC", help="Refused: it is for containers of Windows."),
)


def create_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is new: lists as a whole."""
    new = (
        option("-e", "--env", metavar="NAME=VALUE", help="Environment variable; may be repeated.", **MANY),
        option(
            "--env-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File with a NAME=VALUE per line; may be repeated.",
            **MANY,
        ),
        option("--container-label", metavar="KEY=VALUE", help="Label of the containers; may be repeated.", **MANY),
        option(
            "--mount", metavar="MOUNT", help="type=bind,source=/data,target=/data,readonly; may be repeated.", **MANY
        ),
        option("--group", metavar="GROUP", help="Further group of the user; may be repeated.", **MANY),
        option("--sysctl", metavar="KEY=VALUE", help="Kernel setting of the container; may be repeated.", **MANY),
        option("--ulimit", metavar="NAME=SOFT[:HARD]", help="nofile=1024:2048; may be repeated.", **MANY),
    )
    return decorated(command, (*new, *SAME))


def update_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is there: `-add` and `-rm` of each."""
    changed = (
        option("--env-add", metavar="NAME=VALUE", help="Set a variable; may be repeated.", **MANY),
        option("--env-rm", metavar="NAME", help="Remove a variable; may be repeated.", **MANY),
        option("--container-label-add", metavar="KEY=VALUE", help="Set a container label.", **MANY),
        option("--container-label-rm", metavar="KEY", help="Remove a container label.", **MANY),
        option("--mount-add", metavar="MOUNT", help="Add a mount, or replace that of its target.", **MANY),
        option("--mount-rm", metavar="TARGET", help="Remove a mount; may be repeated.", **MANY),
        option("--group-add", metavar="GROUP", help="Further group of the user; may be repeated.", **MANY),
        option("--group-rm", metavar="GROUP", help="Remove a group; may be repeated.", **MANY),
        option("--sysctl-add", metavar="KEY=VALUE", help="Set a kernel setting; may be repeated.", **MANY),
        option("--sysctl-rm", metavar="KEY", help="Leave a kernel setting as it is; may be repeated.", **MANY),
        option("--ulimit-add", metavar="NAME=SOFT[:HARD]", help="Set a limit; may be repeated.", **MANY),
        option("--ulimit-rm", metavar="NAME", help="Remove a limit; may be repeated.", **MANY),
    )
    return decorated(command, (*changed, *SAME))


def apply_created(template: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `create_options` into a task template, in place."""
    container = template["ContainerSpec"]
    read = [line for path in given["env_file"] for line in _lines(path)]
    container["Env"] = [_variable(text) for text in (*read, *given["env"])]
    container["Labels"] = values.pairs(given["container_label"])
    container["Mounts"] = [mount(text) for text in given["mount"]]
    container["Groups"] = list(given["group"])
    container["Sysctls"] = values.options(given["sysctl"], "sysctl")
    container["Ulimits"] = sorted(map(ulimit, given["ulimit"]), key=lambda limit: str(limit["Name"]))
    _apply_same(template, given)


def apply_updated(template: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `update_options` into a task template, in place."""
    container = template["ContainerSpec"]
    container["Env"] = changed_env(container.get("Env") or (), map(_variable, given["env_add"]), given["env_rm"])
    container["Labels"] = changed_labels(
        container.get("Labels"), given["container_label_add"], given["container_label_rm"]
    )
    container["Groups"] = changed_list(container.get("Groups") or (), given["group_add"], given["group_rm"], "group")
    added = [(one["Target"], one) for one in map(mount, given["mount_add"])]
    container["Mounts"] = _changed(container.get("Mounts"), "Target", added, given["mount_rm"], "mount at")
    limits = [(one["Name"], one) for one in map(ulimit, given["ulimit_add"])]
    container["Ulimits"] = _changed(container.get("Ulimits"), "Name", limits, given["ulimit_rm"], "ulimit")
    sysctls = dict(container.get("Sysctls") or {})
    for key in given["sysctl_rm"]:
        if sysctls.pop(key, None) is None:
            raise NotFound(f"this service has no sysctl {key}")
    container["Sysctls"] = sysctls | values.options(given["sysctl_add"], "sysctl")
    _apply_same(template, given)


def ulimit(text: str) -> Json:
    """`nofile=1024:2048`, or one number for both. Raises `Invalid`."""
    name, equals, numbers = text.partition("=")
    soft, colon, hard = numbers.partition(":")
    try:
        if not name or not equals:
            raise ValueError
        return {"Name": name, "Soft": int(soft), "Hard": int(hard if colon else soft)}
    except ValueError:
        raise Invalid(f"invalid ulimit {text!r}: write NAME=SOFT:HARD, such as nofile=1024:2048") from None


def capabilities(
    added: Iterable[str], dropped: Iterable[str], add: Iterable[str], drop: Iterable[str]
) -> tuple[list[str], list[str]]:
    """What is added and what is dropped after an update, by Docker's rules.

    Adding what was dropped only takes that back, and the other way round; of one command, adding counts.
    """
    more, less = _names(add), _names(drop)
    before = set() if RESET in more else set(added), set() if RESET in less else set(dropped)
    more, less = more - {RESET}, less - {RESET} - more
    have = (before[0] - less) | (more - before[1])
    lack = (before[1] - more) | (less - before[0])
    return _all_or(have), _all_or(lack)


def _names(texts: Iterable[str]) -> set[str]:
    names = [text.strip().upper() for text in texts]
    return {name if name in (RESET, ALL) or name.startswith("CAP_") else f"CAP_{name}" for name in names}


def _all_or(names: set[str]) -> list[str]:
    return [ALL] if ALL in names else sorted(names)


def _apply_same(template: Json, given: Mapping[str, Any]) -> None:
    container = template["ContainerSpec"]
    if given["credential_spec"]:
        raise Unsupported("--credential-spec is not supported: it is for containers of Windows")
    before = (container.get("CapabilityAdd") or (), container.get("CapabilityDrop") or ())
    add, drop = capabilities(*before, given["cap_add"], given["cap_drop"])
    container["CapabilityAdd"], container["CapabilityDrop"] = add, drop
    if given["oom_score_adj"] is not None:
        container["OomScoreAdj"] = given["oom_score_adj"]
    if given["isolation"] is not None:
        container["Isolation"] = given["isolation"]
    if given["log_driver"] is not None:
        template["LogDriver"] = {"Name": given["log_driver"], "Options": values.options(given["log_opt"], "log option")}
    elif given["log_opt"]:
        raise Invalid("--log-opt needs --log-driver")
    resources = template.setdefault("Resources", {})
    if given["memory_swap"] is not None:
        resources["SwapBytes"] = -1 if given["memory_swap"] == "-1" else values.size(given["memory_swap"])
    if given["memory_swappiness"] is not None:
        resources["MemorySwappiness"] = given["memory_swappiness"]


def _changed(
    before: list[Json] | None, key: str, add: Iterable[tuple[str, Json]], remove: Iterable[str], what: str
) -> list[Json]:
    """Entries that a name stands for, in the order of their names."""
    found = {str(entry[key]): entry for entry in before or ()}
    for name in remove:
        if found.pop(name, None) is None:
            raise NotFound(f"this service has no {what} {name}")
    found |= add
    return [found[name] for name in sorted(found)]


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _variable(text: str) -> str:
    """`NAME` alone takes the value it has here."""
    if "=" in text:
        return text
    return f"{text}={os.environ[text]}" if text in os.environ else text
