"""Placeholders in specifications, such as `{{.Task.Slot}}`, filled for each task. The words are Docker's."""

import re
from collections.abc import Mapping

from hivemesh.model.errors import Invalid
from hivemesh.model.task import Task

_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}")
KNOWN = (
    ".Service.ID",
    ".Service.Name",
    ".Task.ID",
    ".Task.Name",
    ".Task.Slot",
    ".Node.ID",
    ".Node.Hostname",
)


def values_of(task: Task, hostname: str) -> Mapping[str, str]:
    """What the placeholders stand for; `hostname` is that of the task's node."""
    values = (
        task.service_id,
        task.service_name,
        task.id,
        task.name,
        str(task.slot),
        task.node_id or "",
        hostname,
    )
    return dict(zip(KNOWN, values, strict=True))


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with its placeholders replaced. Raises `Invalid` for one that is not known."""
    return _PLACEHOLDER.sub(lambda found: _value(values, found), text) if "{{" in text else text


def check(text: str) -> None:
    """Raises `Invalid` when `text` has a placeholder nobody knows."""
    fill(text, dict.fromkeys(KNOWN, ""))


def without(text: str) -> str:
    """`text` with a letter for each placeholder: its form can be judged though its values are not known yet."""
    return _PLACEHOLDER.sub("x", text)


def _value(values: Mapping[str, str], found: re.Match[str]) -> str:
    try:
        return values[found[1]]
    except KeyError:
        raise Invalid(f"unknown placeholder {found[0]}: this version knows {', '.join(values)}") from None
