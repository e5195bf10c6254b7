"""`hivemesh service`: what the swarm runs."""

import asyncio
import copy
from typing import Any

import click

from hivemesh.cli import (
    containerspec,
    logs,
    namespec,
    output,
    payloadspec,
    placementspec,
    progress,
    servicespec,
    tasks,
    values,
)
from hivemesh.cli.servicespec import shared_options
from hivemesh.cli.session import asynchronous, each, filter_option, query
from hivemesh.client import Client
from hivemesh.model.errors import Invalid
from hivemesh.registry.reference import familiar

COLUMNS = {"ID": "ID", "Name": "NAME", "Mode": "MODE", "Replicas": "REPLICAS", "Image": "IMAGE", "Ports": "PORTS"}

MODES: dict[str, dict[str, Any]] = {
    "replicated": {"Replicated": {"Replicas": 1}},
    "global": {"Global": {}},
    "replicated-job": {"ReplicatedJob": {}},
    "global-job": {"GlobalJob": {}},
}
detach_option = click.option("-d", "--detach", is_flag=True, help="Return at once instead of waiting for the tasks.")
still_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")


@click.group()
def service() -> None:
    """Services: what the swarm runs."""


service.add_command(logs.logs)


@service.command(context_settings={"allow_interspersed_args": False})
@click.option("--name", default="", help="Name of the service (default: one is made up).")
@click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    default="replicated",
    help="How many, or one per node; jobs run to an end.",
)
@shared_options
@click.option(
    "-p", "--publish", multiple=True, metavar="PORT", help="8080:80, 53:53/udp, or published=8080,target=80,mode=host."
)
@click.option("--network", multiple=True, metavar="NETWORK", help="backend, or name=backend,alias=db; may be repeated.")
@click.option("-l", "--label", multiple=True, metavar="KEY=VALUE", help="Label of the service; may be repeated.")
@click.option("--constraint", multiple=True, metavar="EXPR", help="node.labels.disk==ssd, node.role!=manager, ...")
@containerspec.create_options
@namespec.create_options
@payloadspec.create_options
@placementspec.create_options
@detach_option
@still_option
@click.argument("image")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@asynchronous
async def create(
    client: Client,
    /,
    name: str,
    mode: str,
    publish: tuple[str, ...],
    network: tuple[str, ...],
    label: tuple[str, ...],
    constraint: tuple[str, ...],
    detach: bool,
    quiet: bool,
    image: str,
    args: tuple[str, ...],
    **shared: Any,
) -> None:
    """Run IMAGE as a service. What follows the image is handed to its program.

    \b
    Examples:
      hivemesh service create --name web --replicas 2 --publish 8080:80 localhost/whoami
      hivemesh service create --name db --network name=backend,alias=sql --constraint node.labels.disk==ssd postgres:16
      hivemesh service create --name api --network backend --endpoint-mode dnsrr --health-cmd 'curl -f localhost' my/api
      hivemesh service create --secret source=key,target=ssl.key,mode=0400 --config site.conf my/web
      hivemesh service create --publish published=53,target=53,protocol=udp,mode=host my/dns -v
      hivemesh service create --mode replicated-job --replicas 10 --max-concurrent 2 my/convert
      hivemesh service create --update-order start-first --update-failure-action rollback my/web
      hivemesh service create --replicas 6 --placement-pref spread=node.labels.zone --generic-resource GPU=1 my/model
      hivemesh service create --name db --network name=backend,ip=10.0.9.5 postgres:16
    """
    spec: dict[str, Any] = {
        "Name": name,
        "Labels": values.pairs(label),
        "Mode": copy.deepcopy(MODES[mode]),
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": familiar(image),
                "Args": list(args),
            },
            "Networks": [values.network(text) for text in network],
            "Placement": {"Constraints": list(constraint)},
        },
        "EndpointSpec": {"Ports": servicespec.published(publish)},
    }
    servicespec.apply_shared(spec, shared)
    containerspec.apply_created(spec["TaskTemplate"], shared)
    namespec.apply_created(spec["TaskTemplate"]["ContainerSpec"], shared)
    placementspec.apply_created(spec["TaskTemplate"], shared)
    await payloadspec.apply_created(client, spec["TaskTemplate"]["ContainerSpec"], shared)
    identifier = (await client.post("/services/create", spec))["ID"]
    click.echo(identifier)
    if not detach:
        await progress.converge(client, identifier, quiet=quiet)


@service.command("ls")
@filter_option
@output.quiet_option
@output.format_option
@asynchronous
async def ls(client: Client, filters: tuple[str, ...], quiet: bool, form: str) -> None:
    """List the services.

    \b
    Examples:
      hivemesh service ls
      hivemesh service ls --filter name=web --format json
    """
    found = await client.get("/services", query(filters, status="true"))
    found.sort(key=lambda value: value["Spec"]["Name"])
    output.listing(COLUMNS, found, lambda value: _row(value, form), quiet=quiet, form=form)


def _row(value: dict[str, Any], form: str) -> dict[str, Any]:
    status = value["ServiceStatus"]
    most = value["Spec"]["TaskTemplate"]["Placement"].get("MaxReplicas")
    done = ""
    if "JobStatus" in value:
        total = value["Spec"]["Mode"].get("ReplicatedJob", {}).get("TotalCompletions")
        of = status["DesiredTasks"] + status["CompletedTasks"] if total is None else total
        done = f" ({status['CompletedTasks']}/{of} completed)"
    ports = [port for port in value["Endpoint"]["Ports"] if port["PublishMode"] == "ingress"]
    return {
        "ID": value["ID"] if form == "json" else value["ID"][:12],
        "Name": value["Spec"]["Name"],
        "Mode": next(name for name, mode in MODES.items() if mode.keys() == value["Spec"]["Mode"].keys()),
        "Replicas": f"{status['RunningTasks']}/{status['DesiredTasks']}"
        + (f" (max {most} per node)" if most else done),
        "Image": value["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
        "Ports": ", ".join(f"*:{port['PublishedPort']}->{port['TargetPort']}/{port['Protocol']}" for port in ports),
    }


@service.command()
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...")
@output.format_option
@asynchronous
async def inspect(client: Client, services: tuple[str, ...], form: str) -> None:
    """Show all that is known of services, as JSON.

    \b
    Examples:
      hivemesh service inspect web
    """
    found = [await client.get(f"/services/{ref}", {"insertDefaults": "true"}) for ref in services]
    output.document(found, form)


@service.command()
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...")
@filter_option
@tasks.whole_option
@output.quiet_option
@output.format_option
@asynchronous
async def ps(
    client: Client, services: tuple[str, ...], filters: tuple[str, ...], whole: bool, quiet: bool, form: str
) -> None:
    """List the tasks of services, with what went wrong.

    \b
    Examples:
      hivemesh service ps web
      hivemesh service ps --filter desired-state=running web
    """
    await tasks.show(client, query((*filters, *(f"service={ref}" for ref in services))), whole, quiet, form)


@service.command()
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...")
@asynchronous
async def rm(client: Client, services: tuple[str, ...]) -> None:
    """Remove services and their tasks.

    \b
    Examples:
      hivemesh service rm web
    """

    async def remove(ref: str) -> str:
        await client.delete(f"/services/{ref}")
        return ref

    await each(services, remove)


@service.command()
@detach_option
@still_option
@click.argument("targets", nargs=-1, required=True, metavar="SERVICE=REPLICAS...")
@asynchronous
async def scale(client: Client, detach: bool, quiet: bool, targets: tuple[str, ...]) -> None:
    """Change how many tasks services have.

    \b
    Examples:
      hivemesh service scale web=5
      hivemesh service scale web=5 db=1
    """
    wanted = {}
    for text in targets:
        ref, equals, count = text.rpartition("=")
        if not equals or not ref or not count.isdecimal():
            raise Invalid(f"invalid scale {text!r}: write SERVICE=REPLICAS, replicas being 0 or more")
        wanted[ref] = int(count)
    identifiers: list[str] = []

    async def change(ref: str) -> str:
        value = await client.get(f"/services/{ref}")
        spec = value["Spec"]
        if "Replicated" not in spec["Mode"] and "ReplicatedJob" not in spec["Mode"]:
            raise Invalid(f"{ref}: scale can only be used with replicated or replicated-job mode")
        servicespec.apply_mode(spec["Mode"], wanted[ref])
        await client.post(f"/services/{value['ID']}/update", spec, {"version": value["Version"]["Index"]})
        identifiers.append(value["ID"])
        return f"{ref} scaled to {wanted[ref]}"

    try:
        await each(wanted, change)
    finally:
        if not detach:
            await asyncio.gather(*(progress.converge(client, identifier, quiet=quiet) for identifier in identifiers))


@service.command(context_settings={"allow_interspersed_args": True})
@click.option("--image", help="Another image.")
@click.option("--args", "arguments", metavar="TEXT", help="Other arguments for the program (split at spaces).")
@click.option("--force", is_flag=True, help="Replace the tasks even if nothing changed.")
@click.option("--rollback", is_flag=True, help="Return to the specification before the last update.")
@shared_options
@click.option("--publish-add", multiple=True, metavar="PORT", help="Publish a port; may be repeated.")
@click.option("--publish-rm", multiple=True, metavar="TARGET", help="Unpublish a target port; may be repeated.")
@click.option("--network-add", multiple=True, metavar="NETWORK", help="backend, or name=backend,alias=db.")
@click.option("--network-rm", multiple=True, metavar="NETWORK", help="Detach from a network; may be repeated.")
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Set a label; may be repeated.")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label; may be repeated.")
@click.option("--constraint-add", multiple=True, metavar="EXPR", help="Add a constraint; may be repeated.")
@click.option("--constraint-rm", multiple=True, metavar="EXPR", help="Remove a constraint; may be repeated.")
@containerspec.update_options
@namespec.update_options
@payloadspec.update_options
@placementspec.update_options
@detach_option
@still_option
@click.argument("ref", metavar="SERVICE")
@asynchronous
async def update(
    client: Client,
    /,
    image: str | None,
    arguments: str | None,
    force: bool,
    rollback: bool,
    publish_add: tuple[str, ...],
    publish_rm: tuple[str, ...],
    network_add: tuple[str, ...],
    network_rm: tuple[str, ...],
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
    constraint_add: tuple[str, ...],
    constraint_rm: tuple[str, ...],
    detach: bool,
    quiet: bool,
    ref: str,
    **shared: Any,
) -> None:
    """Change a service; tasks are replaced where they must be.

    \b
    Examples:
      hivemesh service update --image localhost/whoami:2 web
      hivemesh service update --publish-add 8443:443 --env-add DEBUG=1 web
      hivemesh service update --network-add name=front,alias=www --endpoint-mode vip web
      hivemesh service update --rollback web
    """
    value = await client.get(f"/services/{ref}")
    spec, where = value["Spec"], {"version": value["Version"]["Index"]}
    if rollback:
        where["rollback"] = "previous"
    else:
        template = spec["TaskTemplate"]
        container = template["ContainerSpec"]
        if image:
            container["Image"] = familiar(image)
        if arguments is not None:
            container["Args"] = arguments.split()
        if force:
            template["ForceUpdate"] = template.get("ForceUpdate", 0) + 1
        servicespec.apply_shared(spec, shared)
        containerspec.apply_updated(template, shared)
        namespec.apply_updated(container, shared)
        placementspec.apply_updated(template, shared)
        await payloadspec.apply_updated(client, container, shared)
        spec["Labels"] = servicespec.changed_labels(spec.get("Labels"), label_add, label_rm)
        placement = template["Placement"]
        constraints = placement.get("Constraints") or ()
        placement["Constraints"] = servicespec.changed_list(constraints, constraint_add, constraint_rm, "constraint")
        endpoint = spec["EndpointSpec"]
        left = servicespec.without_ports(endpoint.get("Ports") or (), publish_rm)
        endpoint["Ports"] = left + servicespec.published(publish_add)
        template["Networks"] = await _networks(client, template.get("Networks") or [], network_add, network_rm)
    await client.post(f"/services/{value['ID']}/update", spec, where)
    click.echo(ref)
    if not detach:
        await progress.converge(client, value["ID"], quiet=quiet)


async def _networks(
    client: Client, before: list[dict[str, Any]], add: tuple[str, ...], remove: tuple[str, ...]
) -> list[dict[str, Any]]:
    """A service names its networks by id, users by name."""
    if remove:
        gone = {(await client.get(f"/networks/{ref}"))["Id"] for ref in remove}
        before = [network for network in before if network["Target"] not in gone]
    return before + [values.network(text) for text in add]
