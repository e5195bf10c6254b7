"""Alternated runs as a table: median and spread of each way, and its ratio to the first within the same round."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

Measure = Callable[[], float]


def alternate(ways: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Measure each way once a round, in turn, so that a busy moment of the machine meets all of them."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in order:
            figures[name].append(ways[name]())
    return figures


def spread(figures: Sequence[float], digits: int = 2) -> str:
    """`median (lowest-highest)`."""
    if not figures:
        return "-"
    text = [f"{value:,.{digits}f}" for value in (statistics.median(figures), min(figures), max(figures))]
    return f"{text[0]} ({text[1]}-{text[2]})"


def percentile(figures: Sequence[float], part: float) -> float:
    """The smallest figure that at least `part` of all do not exceed."""
    return sorted(figures)[max(0, math.ceil(part * len(figures)) - 1)]


def ratios(figures: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of each round."""
    return [a / b for a, b in zip(figures, base, strict=True)]


def compare(title: str, unit: str, figures: Mapping[str, Sequence[float]], goal: str = "", digits: int = 0) -> None:
    """Print a table whose first row is what the others are compared with."""
    names = list(figures)
    table = Table(title=title, title_justify="left", caption=goal or None, caption_justify="left")
    for heading in ("way", unit, f"ratio to {names[0]}"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name in names:
        ratio = "1" if name == names[0] else spread(ratios(figures[name], figures[names[0]]))
        table.add_row(name, spread(figures[name], digits), ratio)
    Console(width=120).print(table)


def facts(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], goal: str = "") -> None:
    """Print a plain table."""
    table = Table(title=title, title_justify="left", caption=goal or None, caption_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
