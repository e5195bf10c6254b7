"""Placeholders in specifications, such as `{{.Task.Slot}}`, filled for each task. The words are Docker's."""

import re
from collections.abc import Callable, Mapping

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
_CALL = re.compile(r"""(\w+)\s+(?:"([^"\\]*)"|`([^`]*)`)""")
"""A function with one text: `secret "password"`."""
FUNCTIONS = ("secret", "config", "env")
"""Known where secrets and configs are filled in, and nowhere else."""

Functions = Mapping[str, Callable[[str], str]]


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


def fill(text: str, values: Mapping[str, str], functions: Functions | None = None) -> str:
    """`text` with its placeholders replaced. Raises `Invalid` for one that is not known."""
    if "{{" not in text:
        return text
    return _PLACEHOLDER.sub(lambda found: _value(values, functions or {}, found), text)


def check(text: str, functions: bool = False) -> None:
    """Raises `Invalid` when `text` has a placeholder nobody knows; with `functions` those are known too."""
    fill(text, dict.fromkeys(KNOWN, ""), dict.fromkeys(FUNCTIONS, lambda _: "") if functions else None)


def without(text: str) -> str:
    """`text` with a letter for each placeholder: its form can be judged though its values are not known yet."""
    return _PLACEHOLDER.sub("x", text)


def _value(values: Mapping[str, str], functions: Functions, found: re.Match[str]) -> str:
    if (value := values.get(found[1])) is not None:
        return value
    call = _CALL.fullmatch(found[1])
    if call is not None and call[1] in functions:
        return functions[call[1]](call[2] if call[2] is not None else call[3])
    known = ", ".join((*values, *(f'{name} "NAME"' for name in functions)))
    raise Invalid(f"unknown placeholder {found[0]}: this version knows {known}")
