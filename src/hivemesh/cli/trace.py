"""`hivemesh trace`: the way of a packet through the mesh, hop by hop, there and back."""

import click

from hivemesh.cli import output
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.wire import codec
from hivemesh.wire.trace import Fact, Hop, Trace

BROKEN = 1
"""The exit code when something on the way is not as planned."""
UNSEEN = 3
"""The exit code when all that could be seen is as planned, and something could not be seen."""


@click.command()
@click.argument("ends", nargs=-1, required=True, metavar="[TASK] TARGET")
@click.option("--proto", type=click.Choice(["tcp", "udp", "icmp"]), default="tcp", help="Protocol of the packet.")
@click.option("--explain", is_flag=True, help="Show all that matters at each hop, and the command that shows it.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON document.")
@asynchronous
async def trace(client: Client, ends: tuple[str, ...], proto: str, explain: bool, as_json: bool) -> None:
    """Show the way of a packet through the mesh and back, as planned and as the kernels have it now.

    TASK is a task or container of this node: its name or id, or `web.1`. TARGET is the name of a service or task, a
    virtual or other address on a network of that task, each with :PORT if you like. Without TASK, TARGET is a port that
    this node publishes, as somebody outside uses it: :8080 or ADDRESS:8080.

    Nothing is changed and nothing is sent to servers. Exit code 1: something is not as planned; 3: all that could be
    seen is, but some node could not be asked.

    \b
    Examples:
      hivemesh trace web.1 db:5432
      hivemesh trace web.1 10.0.1.2 --explain
      hivemesh trace :8080
    """
    if len(ends) > 2:
        raise click.UsageError("give one task and one target")
    body = {"source": ends[0] if len(ends) == 2 else "", "target": ends[-1], "protocol": proto}
    found = codec.convert(await client.post("/hivemesh/trace", body), Trace)
    if as_json:
        output.document(codec.to_builtins(found), "json")
    else:
        _show(found, explain)
    hops = [*found.begin, *(hop for way in found.ways for hop in way.hops)]
    if any(hop.finding for hop in hops):
        raise click.exceptions.Exit(BROKEN)
    if any(way.unseen for way in found.ways):
        raise click.exceptions.Exit(UNSEEN)


def _show(found: Trace, explain: bool) -> None:
    click.echo(f"{found.source} -> {found.target}, {found.protocol}")
    for hop in found.begin:
        _hop(hop, explain)
    for way in found.ways:
        click.echo(f"to {way.backend}")
        for hop in way.hops:
            _hop(hop, explain)
        if way.unseen:
            click.echo(f"  {click.style('?', fg='yellow')} the other node's hops are not seen: {way.unseen}")
    findings = [(hop, hop.finding) for hop in (*found.begin, *(h for way in found.ways for h in way.hops))]
    first = next(((hop, fact) for hop, fact in findings if fact is not None), None)
    if first is None:
        seen = "what could be seen" if any(way.unseen for way in found.ways) else "everything on the way"
        click.echo(f"{seen} is as planned")
        return
    hop, fact = first
    click.echo(f"finding: {fact.what} at {_place(hop)} is {fact.kernel}, planned is: {fact.plan}")
    click.echo(f"  cause: {fact.cause}")
    click.echo(f"  proof: {fact.proof}   (on {hop.node})")


def _hop(hop: Hop, explain: bool) -> None:
    sign = click.style("ok", fg="green") if hop.finding is None else click.style("!!", fg="red")
    click.echo(f"  {sign} {_place(hop)}: {hop.title}")
    for fact in hop.facts:
        if explain or not fact.agrees:
            _fact(fact, explain)


def _fact(fact: Fact, explain: bool) -> None:
    sign = click.style("=", fg="green") if fact.agrees else click.style("x", fg="red")
    click.echo(f"       {sign} {fact.what}: plan {fact.plan}; kernel {fact.kernel}")
    if explain:
        click.echo(f"         {fact.proof}")


def _place(hop: Hop) -> str:
    return f"{hop.node}/{hop.namespace or 'host'}"
