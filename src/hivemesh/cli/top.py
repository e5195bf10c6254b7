"""`hivemesh top`: services, their backends and their rates, live."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import click
import msgspec
from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hivemesh.cli import output
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.model.errors import Unavailable
from hivemesh.model.ids import short
from hivemesh.wire import codec
from hivemesh.wire.feed import COUNTS_PERIOD, Counts, Entry, Unheard

ONCE = 2.5 * COUNTS_PERIOD
"""Seconds that `--once` listens: two looks of each node."""
WIDE = 200
"""Columns of a table that goes into a file."""


class Row(msgspec.Struct, kw_only=True):
    """Rates of one service at one door: per second, over all nodes. `backend` is empty for the service as a whole."""

    service: str
    door: str  # `8080/tcp`, or a network's name
    backend: str = ""
    connections: float = 0.0
    received: float = 0.0  # bytes to the service's tasks
    sent: float = 0.0
    refused: float = 0.0
    dropped: float = 0.0  # packets


class Picture(msgspec.Struct, kw_only=True):
    rows: tuple[Row, ...]
    nodes: tuple[str, ...]
    unheard: dict[str, str] = {}


@dataclass(slots=True)
class Rates:
    """The last two looks of each node."""

    seen: dict[str, tuple[Counts | None, Counts]] = field(default_factory=dict)
    unheard: dict[str, str] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        if isinstance(entry, Counts):
            key = entry.node_id or entry.node
            before = self.seen.get(key)
            if before is None or before[1].at < entry.at:
                self.seen[key] = (before[1] if before is not None else None, entry)
            self.unheard.pop(entry.node, None)
        elif isinstance(entry, Unheard):
            self.unheard[entry.node] = entry.reason
            self.seen = {key: pair for key, pair in self.seen.items() if pair[1].node != entry.node}

    def picture(self) -> Picture:
        rows: dict[tuple[str, str, str], Row] = {}
        for before, now in self.seen.values():
            if before is not None:
                _add(rows, before, now)
        ordered = sorted(rows.values(), key=lambda r: (r.service, r.door, r.backend))
        nodes = tuple(sorted(now.node for _, now in self.seen.values()))
        return Picture(rows=tuple(ordered), nodes=nodes, unheard=dict(self.unheard))


def _add(rows: dict[tuple[str, str, str], Row], before: Counts, now: Counts) -> None:
    """What one node counted between two looks, per second."""
    seconds = now.at - before.at

    def row(service: str, door: str, backend: str = "") -> Row:
        return rows.setdefault((service, door, backend), Row(service=service, door=door, backend=backend))

    def grown(new: int, old: int) -> float:
        return max(new - old, 0) / seconds  # its daemon began anew

    backends = {(b.service, b.protocol, b.port, b.backend): b for b in before.backends}
    for count in now.backends:
        old = backends.get((count.service, count.protocol, count.port, count.backend))
        door = f"{count.port}/{count.protocol}"
        for into in (row(count.service, door), row(count.service, door, count.name or count.backend)):
            into.connections += grown(count.connections, old.connections if old else 0)
            into.received += grown(count.toward, old.toward if old else 0)
            into.sent += grown(count.back, old.back if old else 0)
    refusals = {(r.service, r.protocol, r.port): r.refused for r in before.refusals}
    for refusal in now.refusals:
        key = (refusal.service, refusal.protocol, refusal.port)
        row(refusal.service, f"{refusal.port}/{refusal.protocol}").refused += grown(
            refusal.refused, refusals.get(key, 0)
        )
    vips = {(v.service, v.network): v for v in before.vips}
    for vip in now.vips:
        was = vips.get((vip.service, vip.network))
        into = row(vip.service, vip.network)
        into.connections += grown(vip.connections, was.connections if was else 0)
        into.refused += grown(vip.refused, was.refused if was else 0)
    services = {(s.service, s.network): s for s in before.services}
    for service in now.services:
        had = services.get((service.service, service.network))
        into = row(service.service, service.network)
        into.received += grown(service.received, had.received if had else 0)
        into.sent += grown(service.sent, had.sent if had else 0)
        into.dropped += grown(service.dropped, had.dropped if had else 0)


@click.command()
@click.option("--once", is_flag=True, help="Print what happens now, once.")
@click.option("--node", default="", metavar="NODE", help="Of this node only, by name or ID.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a second; with --once, one.")
@asynchronous
async def top(client: Client, once: bool, node: str, as_json: bool) -> None:
    """Show services and their backends with what happens there: per second, on all nodes together.

    Published ports show new connections and bytes through the mesh; networks show connections to the service's virtual
    address, and the bytes of its tasks. On a node that is no manager: of this node alone.

    \b
    Examples:
      hivemesh top
      hivemesh top --once --json
    """
    rates = Rates()
    if once or not (as_json or output.on_terminal()):
        with suppress(TimeoutError):
            async with asyncio.timeout(ONCE):
                async for _ in _looks(client, node, rates):
                    pass
        picture = rates.picture()
        if not picture.nodes:
            raise Unavailable("no node tells what it counts: " + (_unheard(picture) or "try again in a moment"))
        if as_json:
            output.document(codec.to_builtins(picture))
        else:
            Console(width=None if output.on_terminal() else WIDE).print(table(picture))
        return
    if as_json:
        async for _ in _looks(client, node, rates):
            output.document(codec.to_builtins(rates.picture()), "json")
        return
    with Live(screen=True, auto_refresh=False) as live:
        live.update(table(rates.picture(), live.console.height), refresh=True)
        async for _ in _looks(client, node, rates):
            live.update(table(rates.picture(), live.console.height), refresh=True)


async def _looks(client: Client, node: str, rates: Rates) -> AsyncIterator[None]:
    """One step for each second, after all that was told meanwhile went into `rates`."""
    due = asyncio.get_running_loop().time() + COUNTS_PERIOD
    async with aclosing(client.lines("/hivemesh/counts", {"node": node} if node else None)) as lines:  # type: ignore[type-var]
        async for line in lines:
            rates.take(codec.convert(line, Entry))  # type: ignore[arg-type]
            if asyncio.get_running_loop().time() >= due:
                due = asyncio.get_running_loop().time() + COUNTS_PERIOD
                yield


def table(picture: Picture, most: int | None = None) -> Table:
    """For people. With `most`, in so many lines: what is idle goes first, and the last says how much is missing."""
    title = f"{len(picture.nodes)} nodes, per second"
    found = Table(
        title=title, caption=_unheard(picture) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    found.add_column("SERVICE", no_wrap=True, min_width=12)
    found.add_column("AT", no_wrap=True, min_width=8)
    for heading in ("CONNS", "RECEIVED", "SENT", "REFUSED", "DROPPED"):
        found.add_column(heading, justify="right", no_wrap=True, min_width=max(len(heading), 5))
    shown = list(picture.rows) if most is None else _fitting(picture, most - _AROUND - bool(picture.unheard))
    for row in shown:
        cells = (f"{row.connections:.1f}", size(row.received), size(row.sent), _red(row.refused), _red(row.dropped))
        if row.backend:
            found.add_row(f"  {escape(_short_task(row.backend))}", "", *cells, style="dim")
        else:
            found.add_row(f"[bold]{escape(row.service)}[/bold]", row.door, *cells)
    if missing := len(picture.rows) - len(shown):
        found.add_row(f"[dim]{missing} more[/dim]", "", "", "", "", "", "")
    return found


_AROUND = 6
"""Lines of the title, around the headings, below the rows, and of what is missing."""


def _fitting(picture: Picture, most: int) -> list[Row]:
    """At most so many, in their order: first of all what happens now, then idle services, then their idle backends."""
    if len(picture.rows) <= most:
        return list(picture.rows)

    def place(row: Row) -> int:
        busy = row.connections or row.received or row.sent or row.refused or row.dropped
        return (1 if row.backend else 0) if busy else (3 if row.backend else 2)

    kept = sorted(range(len(picture.rows)), key=lambda i: (place(picture.rows[i]), i))[: max(most, 1)]
    return [picture.rows[i] for i in sorted(kept)]


def _short_task(name: str) -> str:
    """Of a global service's task, whose name ends in its node's whole id."""
    service, _, last = name.rpartition(".")
    return f"{service}.{short(last)}" if service else name


def _unheard(picture: Picture) -> str:
    return "; ".join(f"{node} tells nothing: {why}" for node, why in sorted(picture.unheard.items()))


def _red(rate: float) -> str:
    return f"[red]{rate:.1f}[/red]" if rate else "0.0"


def size(count: float) -> str:
    """Bytes as people read them: powers of 1000."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"
