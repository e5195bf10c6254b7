"""How results are shown: aligned tables, JSON, and times as people say them."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

FORMATS = ("table", "json")
GAP = 3


def check_format(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """`table` or `json`; Docker's Go templates are a language of their own, which we do not have."""
    if value in FORMATS:
        return value
    text = "Go templates are not supported" if "{{" in value else f"unknown format {value!r}"
    raise click.BadParameter(f"{text}: use table or json", ctx=ctx, param=param)


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--format", "form", default="table", callback=check_format, metavar="table|json", help="Form of the output."
    )(command)


def quiet_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("-q", "--quiet", is_flag=True, help="Print IDs only.")(command)


def rows(columns: Mapping[str, str], values: Sequence[Mapping[str, Any]], form: str) -> None:
    """Rows as a table (`columns`: key to heading) or as one JSON object per line."""
    if form == "json":
        for value in values:
            click.echo(msgspec.json.encode(value))
        return
    cells = [list(columns.values())]
    cells += [[str(value.get(key, "")) for key in columns] for value in values]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        click.echo((" " * GAP).join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def listing(
    columns: Mapping[str, str],
    found: Iterable[Mapping[str, Any]],
    row: Callable[[Any], Mapping[str, Any]],
    *,
    quiet: bool,
    form: str,
    key: str = "ID",
) -> None:
    """What the API found as rows, each made by `row`; `quiet`: as ids only, which stand under `key`."""
    if quiet:
        ids(value[key] for value in found)
    else:
        rows(columns, [row(value) for value in found], form)


def document(value: Any, form: str = "table") -> None:
    """An object as indented JSON, or with `json` in one line."""
    encoded = msgspec.json.encode(value)
    click.echo(encoded if form == "json" else msgspec.json.format(encoded, indent=4))


def ids(values: Iterable[str]) -> None:
    for value in values:
        click.echo(value)


def seconds_since(stamp: str) -> float:
    """Seconds since an RFC 3339 time."""
    head, _, fraction = stamp.rstrip("Z").partition(".")
    moment = datetime.fromisoformat(f"{head}+00:00").timestamp() + float(f"0.{fraction or 0}")
    return max(time.time() - moment, 0.0)


def ago(stamp: str) -> str:
    """`12 seconds ago`, as Docker words it."""
    if stamp.startswith("0001"):
        return ""
    elapsed = seconds_since(stamp)
    if elapsed < 1:
        return "less than a second ago"
    for unit, length, limit in (
        ("second", 1, 60),
        ("minute", 60, 3600),
        ("hour", 3600, 48 * 3600),
        ("day", 86400, 14 * 86400),
        ("week", 7 * 86400, 60 * 86400),
        ("month", 30 * 86400, 2 * 365 * 86400),
        ("year", 365 * 86400, float("inf")),
    ):
        if elapsed < limit:
            count = int(elapsed // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return ""


def on_terminal() -> bool:
    return sys.stderr.isatty() and sys.stdout.isatty()


def local_time(nanoseconds: int) -> str:
    """A unix time as the reader's clock shows it."""
    return datetime.fromtimestamp(nanoseconds / 1e9).astimezone().isoformat(timespec="milliseconds")
