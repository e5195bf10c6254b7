"""`hivemesh trace`: the way of a packet through the mesh, hop by hop, there and back."""

import click

from hivemesh.cli import output
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.wire import codec
from hivemesh.wire.trace import MOST_COUNT, PROBE, Fact, Hop, Trace

BROKEN = 1
"""The exit code when something on the way is not as planned."""
UNSEEN = 3
"""The exit code when all that could be seen is as planned, and something could not be seen."""


@click.command()
@click.argument("ends", nargs=-1, required=True, metavar="[FROM] TARGET")
@click.option("--proto", type=click.Choice(["tcp", "udp", "icmp"]), default="tcp", help="Protocol of the packet.")
@click.option("--probe/--no-probe", default=True, help="Send marked packets and look where they come through.")
@click.option("--count", type=click.IntRange(1, MOST_COUNT), metavar="N", help="Send N probes to the target itself.")
@click.option("--explain", is_flag=True, help="Show all that matters at each hop, and the command that shows it.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON document.")
@asynchronous
async def trace(
    client: Client, ends: tuple[str, ...], proto: str, probe: bool, count: int | None, explain: bool, as_json: bool
) -> None:
    """Show the way of a packet through the mesh and back: as planned, as the kernels have it now, and by trying.

    FROM is a task or container: its name or id, or `web.1`; one of any node when asked of a manager, else of this node.
    TARGET is the name of a service or task, a virtual or other address on a network of that task, each with :PORT if
    you like. Without FROM, or with an outside address there, TARGET is a published port as somebody outside uses it:
    :8080 or ADDRESS:8080 of this node, or NODE:8080. With a node as FROM, that node asks, as any machine outside would.

    Probes are marked packets that packet sockets look out for on all nodes of the way: TCP connections that are never
    completed, so that no server accepts one; UDP datagrams whose text says what they are; echoes, small and as large as
    the network carries. --no-probe sends none. Nothing is changed.

    Exit code 1: something is not as planned, or a probe was lost; 3: all that could be seen is well, but some node
    could not be asked.

    \b
    Examples:
      hivemesh trace web.1 db:5432
      hivemesh trace web.1 10.0.1.2 --explain
      hivemesh trace web.1 db:5432 --count 20
      hivemesh trace web.1 dns:53 --proto udp
      hivemesh trace :8080 --no-probe
      hivemesh trace 192.0.2.200 node3:8080
      hivemesh trace node1 node3:8080
    """
    if len(ends) > 2:
        raise click.UsageError("give one beginning and one target")
    body = {
        "source": ends[0] if len(ends) == 2 else "",
        "target": ends[-1],
        "protocol": proto,
        "probe": probe,
        "count": count or 0,
    }
    found = codec.convert(await client.post("/hivemesh/trace", body), Trace)
    if as_json:
        output.document(codec.to_builtins(found), "json")
    else:
        _show(found, explain)
    if found.finding is not None:
        raise click.exceptions.Exit(BROKEN)
    if any(way.unseen for way in found.ways):
        raise click.exceptions.Exit(UNSEEN)


def _show(found: Trace, explain: bool) -> None:
    click.echo(f"{found.source} -> {found.target}, {found.protocol}")
    if found.said:
        click.echo(found.said)
    for hop in found.begin:
        _hop(hop, explain)
    for way in found.ways:
        met = f", which {way.met} of them met" if found.said else ""
        click.echo(f"to {way.backend}{met}" + (f": {way.said}" if way.said else ""))
        for hop in way.hops:
            _hop(hop, explain)
        if way.unseen:
            click.echo(f"  {click.style('?', fg='yellow')} the other node's hops are not seen: {way.unseen}")
    if found.end:
        click.echo("back to the caller")
        for hop in found.end:
            _hop(hop, explain)
    for note in found.notes:
        click.echo(f"note: {note}")
    if found.finding is None:
        seen = "what could be seen" if any(way.unseen for way in found.ways) else "everything on the way"
        click.echo(f"{seen} is as planned")
        return
    hop, fact = found.finding
    click.echo(f"finding: {fact.what} at {_place(hop)}: {fact.kernel}; planned: {fact.plan}")
    click.echo(f"  cause: {fact.cause}")
    click.echo(f"  proof: {fact.proof}   (on {hop.node})")


def _hop(hop: Hop, explain: bool) -> None:
    witness = hop.probe
    good = hop.finding is None and (witness is None or witness.agrees)
    sign = click.style("ok", fg="green") if good else click.style("!!", fg="red")
    tried = f" (probe: {witness.kernel})" if witness is not None and not explain else ""
    click.echo(f"  {sign} {_place(hop)}: {hop.title}{tried}")
    for fact in hop.facts:
        if explain or not fact.agrees:
            _fact(fact, explain)
    if witness is not None and explain:
        _fact(witness, explain)


def _fact(fact: Fact, explain: bool) -> None:
    sign = click.style("=", fg="green") if fact.agrees else click.style("x", fg="red")
    click.echo(f"       {sign} {fact.what}: plan {fact.plan}; {'' if fact.what == PROBE else 'kernel '}{fact.kernel}")
    if explain:
        click.echo(f"         {fact.proof}")


def _place(hop: Hop) -> str:
    return f"{hop.node}/{hop.namespace or 'host'}"
