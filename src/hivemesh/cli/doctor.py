"""`hivemesh doctor`: what is wrong with this machine and its swarm, why it matters, and what to do about it."""

import socket
from collections.abc import Sequence

import click

from hivemesh.cli import output
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.config import DATA_DIR
from hivemesh.model.errors import Unavailable
from hivemesh.wire import codec
from hivemesh.wire.doctor import SEVERITIES, Diagnosis, Finding, Severity, Way

EXIT: dict[Severity | None, int] = {None: 0, "note": 0, "warning": 1, "error": 2}
COLORS: dict[Severity, str] = {"error": "red", "warning": "yellow", "note": "blue"}
WIDEST = 12
"""Nodes of a matrix that fits a terminal; of more, only what is not well is shown."""


@click.command()
@click.option("--fix", is_flag=True, help="Put right what is safe to, on this machine: modules, settings, leftovers.")
@click.option("--notes/--no-notes", default=True, help="Also tell what is merely different here.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON document.")
@asynchronous
async def doctor(client: Client, fix: bool, notes: bool, as_json: bool) -> None:
    """Find what is wrong, before this machine joins a swarm and while it is in one.

    Before: the kernel, ports, firewalls, address pools, cgroups, Podman, disks, limits. In a swarm, of all nodes at
    once: every node to every node through tunnels and back, the largest packet each path carries, checksums, clocks,
    names, certificates, drift, the managers' store. It sends a few hundred small probes; no server sees them.

    Without a daemon this machine is looked at by the command itself, as root. Exit code 0: all is well; 1: warnings;
    2: errors.

    \b
    Examples:
      hivemesh doctor
      hivemesh doctor --fix
      hivemesh doctor --json | jq '.findings[].what'
    """
    try:
        found = codec.convert(await client.post("/hivemesh/doctor", {"fix": fix}), Diagnosis)
    except Unavailable as error:
        if click.get_current_context().find_root().obj:
            raise  # another machine than this one may be meant
        found = _by_ourselves(fix, str(error))
    if as_json:
        output.document(codec.to_builtins(found), "json")
    else:
        show(found, notes=notes)
    raise click.exceptions.Exit(EXIT[found.worst])


def _by_ourselves(fix: bool, why: str) -> Diagnosis:
    """No daemon answers: look at this machine from here."""
    from msgspec.structs import replace

    from hivemesh.doctor import fixes, machine, registry

    member = machine.was_member(DATA_DIR)
    own = machine.gather(socket.gethostname(), data_dir=DATA_DIR, member=member)
    found = registry.diagnose(own.name, own, more=(_no_daemon(own.name, why, member),))
    return replace(found, fixed=tuple(fixes.apply(own, found.findings))) if fix else found


def _no_daemon(name: str, why: str, member: bool) -> Finding:
    return Finding(
        check="session",
        severity="error" if member else "note",
        where=name,
        what=f"hivemeshd does not answer: {why}",
        why="this machine is in a swarm: its containers run on, and hear of nothing new"
        if member
        else "this machine was looked at without it",
        remedy="start it: systemctl start hivemeshd, or hivemeshd",
        proof="systemctl status hivemeshd",
    )


def show(found: Diagnosis, *, notes: bool) -> None:
    """For people: what is wrong, worst first, then who reaches whom."""
    told = [finding for finding in found.findings if notes or finding.severity != "note"]
    for finding in told:
        _finding(finding)
    for line in found.fixed:
        click.echo(f"{click.style('fixed', fg='green')}  {line}")
    if found.matrix:
        _matrix(found.nodes, found.matrix)
    counts = {severity: sum(f.severity == severity for f in found.findings) for severity in reversed(SEVERITIES)}
    words = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items() if count)
    where = f"{len(found.nodes)} nodes" if len(found.nodes) > 1 else found.node
    click.echo(f"{len(found.checks)} checks on {where}: {words or 'all is well'}")


def _finding(finding: Finding) -> None:
    sign = click.style(f"{finding.severity:<8}", fg=COLORS[finding.severity], bold=True)
    click.echo(f"{sign} {click.style(finding.where, bold=True)}: {finding.what}  [{finding.check}]")
    for label, text in (("why", finding.why), ("do", finding.remedy), ("see", finding.proof)):
        if text:
            click.echo(f"         {label:<4} {text}")


def _matrix(nodes: Sequence[str], ways: Sequence[Way]) -> None:
    """Rows send, columns receive."""
    if len(nodes) > WIDEST:
        good = sum(_is_well(way) for way in ways)
        click.echo(f"{good} of {len(ways)} directions between nodes work")
        return
    known = {(way.sender, way.receiver): way for way in ways}
    width = max(8, *(len(name) for name in nodes)) + 2
    click.echo("from \\ to".ljust(width) + "".join(name.ljust(width) for name in nodes))
    for sender in nodes:
        cells = [_cell(known.get((sender, receiver))) for receiver in nodes]
        line = "".join(click.style(text.ljust(width), fg=color) for text, color in cells)
        click.echo(sender.ljust(width) + line.rstrip())


def _is_well(way: Way) -> bool:
    return bool(way.underlay) and way.overlay is not False


def _cell(way: Way | None) -> tuple[str, str | None]:
    if way is None:
        return "-", None
    if way.underlay is None:
        return "unseen", "yellow"
    if not _is_well(way):
        return "lost" if not way.underlay else "inside", "red"
    return f"ok {way.largest}" if way.largest else "ok small", "green"
