"""`hivemesh flows`: new connections as they begin, with the services at both ends."""

import asyncio
from contextlib import aclosing, suppress

import click

from hivemesh.cli import output
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.wire import codec
from hivemesh.wire.feed import End, Entry, Flow, Lost, Unheard

SECONDS = 5.0
"""How long connections are shown without `--follow`."""
COLORS = {"balanced": "green", "direct": "cyan", "refused": "red"}


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Until interrupted, instead of for some seconds.")
@click.option("--for", "seconds", type=click.FloatRange(min=0.5), default=SECONDS, show_default=True, metavar="SECONDS",
              help="How long, without --follow.")  # fmt: skip
@click.option("--node", default="", metavar="NODE", help="Of this node only, by name or ID.")
@click.option("--service", default="", metavar="NAME", help="Only with this service at one end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@asynchronous
async def flows(client: Client, follow: bool, seconds: float, node: str, service: str, as_json: bool) -> None:
    """Show new connections as they begin: from whom, to which service, and the backend that answers.

    On a manager those of all nodes, elsewhere those of this node. What comes faster than it can be told is left out,
    and counted: "lost N".

    \b
    Examples:
      hivemesh flows -f
      hivemesh flows -f --service web --json
      hivemesh flows --for 30 --node n2
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(None if follow else seconds):
            async with aclosing(client.lines("/hivemesh/flows", {"node": node} if node else None)) as lines:  # type: ignore[type-var]
                async for line in lines:
                    entry: Entry = codec.convert(line, Entry)  # type: ignore[arg-type]
                    if isinstance(entry, Flow) and service and service not in _services(entry):
                        continue
                    if as_json:
                        output.document(line, "json")
                    else:
                        click.echo(words(entry), err=not isinstance(entry, Flow))


def _services(flow: Flow) -> set[str]:
    ends = (flow.source, flow.target, *((flow.backend,) if flow.backend is not None else ()))
    return {end.service for end in ends}


def words(entry: Entry) -> str:
    """One line for people."""
    match entry:
        case Flow():
            backend = f" => {shown(entry.backend)}" if entry.backend is not None else ""
            verdict = click.style(entry.verdict, fg=COLORS[entry.verdict])
            ends = f"{shown(entry.source)} -> {shown(entry.target)}{backend}"
            when = output.local_time(int(entry.at * 1e9))[11:23]
            return f"{when}  {entry.node}  {entry.protocol:<4}  {ends}  {verdict}"
        case Lost():
            return f"lost {entry.count} (on {entry.node}: more than can be told)"
        case Unheard():
            return f"node {entry.node} tells nothing: {entry.reason}"
        case _:
            return ""


def shown(end: End) -> str:
    """`web.1 (10.0.1.5:80)`, or as much of it as is known."""
    host = f"[{end.address}]" if ":" in end.address else end.address
    place = f"{host}:{end.port}" if end.port else host
    name = end.name or end.service
    return f"{name} ({place})" if name else place
