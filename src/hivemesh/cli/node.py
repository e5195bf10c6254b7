"""`hivemesh node`: machines of the swarm."""

from typing import Any

import click

from hivemesh.cli import output, tasks, values
from hivemesh.cli.session import asynchronous, each, filter_option, own_node, query
from hivemesh.client import Client
from hivemesh.model.errors import NotFound

COLUMNS = {
    "ID": "ID",
    "Hostname": "HOSTNAME",
    "Status": "STATUS",
    "Availability": "AVAILABILITY",
    "ManagerStatus": "MANAGER STATUS",
    "Address": "ADDRESS",
    "EngineVersion": "ENGINE VERSION",
}


@click.group()
def node() -> None:
    """Machines of the swarm. SELF stands for the machine of the daemon."""


@node.command("ls")
@filter_option
@output.quiet_option
@output.format_option
@asynchronous
async def ls(client: Client, filters: tuple[str, ...], quiet: bool, form: str) -> None:
    """List the nodes.

    \b
    Examples:
      hivemesh node ls
      hivemesh node ls --filter role=worker --format json
    """
    found = await client.get("/nodes", query(filters))
    own = (await client.get("/info"))["Swarm"]["NodeID"]
    found.sort(key=lambda value: value["Description"]["Hostname"])
    output.listing(COLUMNS, found, lambda value: _row(value, own, form), quiet=quiet, form=form)


def _row(value: dict[str, Any], own: str, form: str) -> dict[str, Any]:
    manager = value.get("ManagerStatus") or {}
    status = ("leader" if manager.get("Leader") else manager.get("Reachability", "")).title()
    here = value["ID"] == own
    row = {
        "ID": value["ID"] if form == "json" else value["ID"] + (" *" if here else ""),
        "Hostname": value["Description"]["Hostname"],
        "Status": value["Status"]["State"].title(),
        "Availability": value["Spec"]["Availability"].title(),
        "ManagerStatus": status,
        "Address": value["Status"]["Addr"],
        "EngineVersion": value["Description"]["Engine"]["EngineVersion"],
    }
    return row | ({"Self": here} if form == "json" else {})


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@output.format_option
@asynchronous
async def inspect(client: Client, nodes: tuple[str, ...], form: str) -> None:
    """Show all that is known of nodes, as JSON.

    \b
    Examples:
      hivemesh node inspect self
    """
    output.document([await client.get(f"/nodes/{await own_node(client, ref)}") for ref in nodes], form)


@node.command()
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
@filter_option
@tasks.whole_option
@output.quiet_option
@output.format_option
@asynchronous
async def ps(
    client: Client, nodes: tuple[str, ...], filters: tuple[str, ...], whole: bool, quiet: bool, form: str
) -> None:
    """List the tasks of nodes (without an argument: of this one).

    \b
    Examples:
      hivemesh node ps n2
    """
    wanted = [f"node={await own_node(client, ref)}" for ref in nodes or ("self",)]
    await tasks.show(client, query((*filters, *wanted)), whole, quiet, form)


@node.command()
@click.option("-f", "--force", is_flag=True, help="Remove a node that is not down.")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@asynchronous
async def rm(client: Client, force: bool, nodes: tuple[str, ...]) -> None:
    """Remove nodes from the swarm.

    \b
    Examples:
      hivemesh node rm n3
      hivemesh node rm --force n3
    """

    async def remove(ref: str) -> str:
        await client.delete(f"/nodes/{await own_node(client, ref)}", {"force": int(force)})
        return ref

    await each(nodes, remove)


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@asynchronous
async def promote(client: Client, nodes: tuple[str, ...]) -> None:
    """Make nodes managers.

    \b
    Examples:
      hivemesh node promote n2 n3
    """
    await each(nodes, lambda ref: _change_role(client, ref, "manager"))
    await warn_of_managers(client)


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@asynchronous
async def demote(client: Client, nodes: tuple[str, ...]) -> None:
    """Make managers plain nodes. The last manager cannot be demoted.

    \b
    Examples:
      hivemesh node demote n3
    """
    await each(nodes, lambda ref: _change_role(client, ref, "worker"))
    await warn_of_managers(client)


async def warn_of_managers(client: Client) -> None:
    """Two managers are more fragile than one: the daemon says so in `info`, and here whoever makes them."""
    for warning in (await client.get("/info"))["Swarm"].get("Warnings") or ():
        click.echo(warning, err=True)


async def _change_role(client: Client, ref: str, role: str) -> str:
    value = await client.get(f"/nodes/{await own_node(client, ref)}")
    if value["Spec"]["Role"] == role:
        return f"Node {ref} is already a {role}."
    spec = value["Spec"] | {"Role": role}
    await client.post(f"/nodes/{value['ID']}/update", spec, {"version": value["Version"]["Index"]})
    return f"Node {ref} is a {role} now."


@node.command()
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]), help="May the node get tasks?")
@click.option("--role", type=click.Choice(["worker", "manager"]), help="Role in the swarm.")
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Add or change a label; may be repeated.")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label; may be repeated.")
@click.argument("ref", metavar="NODE")
@asynchronous
async def update(
    client: Client,
    availability: str | None,
    role: str | None,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
    ref: str,
) -> None:
    """Change what the swarm may do with a node.

    \b
    Examples:
      hivemesh node update --availability drain n2
      hivemesh node update --label-add disk=ssd n2
    """
    value = await client.get(f"/nodes/{await own_node(client, ref)}")
    spec = value["Spec"]
    labels = (spec.get("Labels") or {}) | values.pairs(label_add)
    for key in label_rm:
        if key not in labels:
            raise NotFound(f"node {ref} has no label {key}")
        del labels[key]
    spec["Labels"] = labels
    if availability:
        spec["Availability"] = availability
    if role:
        spec["Role"] = role
    await client.post(f"/nodes/{value['ID']}/update", spec, {"version": value["Version"]["Index"]})
    click.echo(ref)
