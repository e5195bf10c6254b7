"""`docs/compatibility.md`, out of what the rows were answered."""

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from conform_commands import COMMANDS
from conform_endpoints import ENDPOINTS, REFUSALS
from conform_rig import Board, Row

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HEAD = """\
# Compatibility

What the `docker` command, and any client of the Docker Engine API, gets from hivemesh. This page is made by a test run
(`make compat`): each line was sent to a lab of three nodes on Podman, its effect was looked for, and a test fails when
the answers differ from what stands here. `yes` means it worked and had its effect; anything else is what was said.

`IMAGE` is an image, `TASK`, `NODE`, `WEB` are ids; `t-1` is made for the line, the other names are there before. n1
manages the swarm, n2 works in it, n3 is in none.
"""
ENDPOINTS_HEAD = """
## Endpoints

With and without a version before the path. `exec` and `attach` were asked for what is not there; the commands above use
them.
"""


def page(board: Board) -> str:
    """The whole page. A row that the docker command here does not know keeps what the page says of it already."""
    old = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", PAGE.read_text() if PAGE.exists() else "", re.MULTILINE))
    parts = [HEAD, "\n## Commands\n"]
    for group, rows in groupby(COMMANDS, lambda row: row.group):
        parts += [f"\n### {group}\n\n| Command | |\n|---|---|\n", *_lines(board, rows, old)]
    parts.append(ENDPOINTS_HEAD)
    for group, rows in groupby(sorted(ENDPOINTS, key=lambda row: row.group), lambda row: row.group):
        parts += [f"\n### {group}\n\n| Endpoint | |\n|---|---|\n", *_lines(board, rows, old)]
    parts.append("\n## Bad input\n\nWhat client libraries pass on unchecked.\n\n| What | Answer |\n|---|---|\n")
    parts += [f"| {row.group} | {board.outcome(row).verdict} |\n" for row in REFUSALS]
    return "".join(parts)


def _lines(board: Board, rows: Iterable[Row], old: dict[str, str]) -> Iterable[str]:
    for row in rows:
        text = f"`{row.template or row.line}`".replace("|", "\\|")
        what = f"{text} on {row.node}" if row.node != "n1" else text
        verdict = board.outcome(row).verdict
        yield f"| {what} | {old.get(what, 'unknown') if verdict is None else verdict} |\n"
