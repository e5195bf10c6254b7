"""Commands about the daemon beside us: info, version, events; shell completion."""

from collections.abc import Iterable
from typing import Any

import click

import hivemesh
from hivemesh.cli import output
from hivemesh.cli.session import asynchronous, filter_option, query
from hivemesh.client import Client
from hivemesh.model.errors import HivemeshError


@click.command()
@output.format_option
@asynchronous
async def info(client: Client, form: str) -> None:
    """Show this machine and its place in a swarm.

    \b
    Examples:
      hivemesh info
      hivemesh info --format json
    """
    value = await client.get("/info")
    if form == "json":
        output.document(value, form)
        return
    swarm = value["Swarm"]
    lines: list[tuple[str, Any]] = [
        ("Name", value["Name"]),
        ("Version", value["ServerVersion"]),
        ("Kernel", value["KernelVersion"]),
        ("System", value["OperatingSystem"]),
        ("CPUs", value["NCPU"]),
        ("Memory", f"{value['MemTotal'] / 2**30:.1f} GiB"),
        ("Containers", f"{value['ContainersRunning']} running, {value['Containers']} in all"),
        *((name, text) for name, text in value["FirewallBackend"].get("Info") or ()),
        ("Swarm", swarm["LocalNodeState"]),
    ]
    if swarm["LocalNodeState"] != "inactive":
        lines += [("  Node", swarm["NodeID"]), ("  Address", swarm["NodeAddr"])]
        lines += [("  Role", "manager" if swarm["ControlAvailable"] else "worker")]
        lines += [("  Managers", ", ".join(known["Addr"] for known in swarm["RemoteManagers"] or []))]
    if "Nodes" in swarm:
        lines += [("  Nodes", f"{swarm['Nodes']}, managers {swarm['Managers']}")]
        lines += [("  Address pools", ", ".join(swarm["Cluster"]["DefaultAddrPool"]))]
    if swarm["Error"]:
        lines += [("  Error", swarm["Error"])]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name:<{width}}   {text}")
    for warning in value["Warnings"]:
        click.echo(warning, err=True)


@click.command()
@output.format_option
@asynchronous
async def version(client: Client, form: str) -> None:
    """Show the versions of this command and of the daemon.

    \b
    Examples:
      hivemesh version
    """
    mine: dict[str, Any] = {"Client": {"Version": hivemesh.__version__}}
    failure: HivemeshError | None = None
    try:
        mine["Server"] = await client.get("/version")
    except HivemeshError as error:
        failure = error
    if form == "json":
        output.document(mine, form)
    else:
        click.echo(f"Client   {hivemesh.__version__}")
        if server := mine.get("Server"):
            click.echo(f"Server   {server['Version']} (API {server['ApiVersion']}, at least {server['MinAPIVersion']})")
            for part in server["Components"][1:]:
                click.echo(f"Engine   {part['Name']} {part['Version']}")
    if failure is not None:
        raise failure


@click.command()
@filter_option
@click.option("--since", default="", help="Also what happened since then (unix seconds).")
@click.option("--until", default="", help="Stop then (unix seconds).")
@output.format_option
@asynchronous
async def events(client: Client, filters: tuple[str, ...], since: str, until: str, form: str) -> None:
    """Follow what changes in the swarm and in this machine's containers.

    \b
    Examples:
      hivemesh events
      hivemesh events --filter type=service
    """
    more = {key: value for key, value in (("since", since), ("until", until)) if value}
    async for event in client.lines("/events", query(filters, **more)):
        if form == "json":
            output.document(event, form)
            continue
        actor = event["Actor"]
        facts = ", ".join(f"{key}={value}" for key, value in sorted(actor["Attributes"].items()))
        click.echo(f"{output.local_time(event['timeNano'])} {event['Type']} {event['Action']} {actor['ID']} ({facts})")


@click.group()
def system() -> None:
    """This machine: what it is, what happens on it, what fills its disk."""


@system.command()
@output.format_option
@asynchronous
async def df(client: Client, form: str) -> None:
    """Show what images, containers and volumes of this machine take.

    \b
    Examples:
      hivemesh system df
    """
    value = await client.get("/system/df")
    images, containers, volumes = (value.get(kind) or [] for kind in ("Images", "Containers", "Volumes"))
    idle = sum(image["Size"] for image in images if not image.get("Containers"))
    used = [volume for volume in volumes if (volume.get("UsageData") or {}).get("RefCount", 0) > 0]
    lines = [
        ("Images", len(images), sum(bool(image.get("Containers")) for image in images), value["LayersSize"], idle),
        (
            "Containers",
            len(containers),
            sum(container.get("State") == "running" for container in containers),
            _bytes(containers),
            _bytes(container for container in containers if container.get("State") != "running"),
        ),
        ("Volumes", len(volumes), len(used), _kept(volumes), _kept(each for each in volumes if each not in used)),
    ]
    columns = {"type": "TYPE", "total": "TOTAL", "active": "ACTIVE", "size": "SIZE", "idle": "UNUSED"}
    shown = [
        {"type": kind, "total": total, "active": active, "size": _amount(size), "idle": _amount(idle)}
        for kind, total, active, size, idle in lines
    ]
    output.rows(columns, shown, form)


def _bytes(containers: Iterable[dict[str, Any]]) -> int:
    return sum(container.get("SizeRw") or 0 for container in containers)


def _kept(volumes: Iterable[dict[str, Any]]) -> int:
    return sum(max((volume.get("UsageData") or {}).get("Size", 0), 0) for volume in volumes)


def _amount(size: float) -> str:
    """Bytes, as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g}TB"


system.add_command(info)
system.add_command(events)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      source <(hivemesh completion bash)
      hivemesh completion fish > ~/.config/fish/completions/hivemesh.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "hivemesh", "_HIVEMESH_COMPLETE").source())
