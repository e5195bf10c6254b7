"""`hivemesh network`: networks that span the swarm."""

from collections.abc import Iterable, Mapping
from typing import Any

import click

from hivemesh.cli import output, values
from hivemesh.cli.session import asynchronous, each, filter_option, query
from hivemesh.client import Client
from hivemesh.model.addr import Prefix, parse_address, parse_prefix
from hivemesh.model.errors import Invalid

COLUMNS = {"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Subnets": "SUBNETS"}


@click.group()
def network() -> None:
    """Networks that span the swarm."""


@network.command()
@click.option("-d", "--driver", default="overlay", show_default=True, help="Driver of the network.")
@click.option("--subnet", multiple=True, metavar="CIDR", help="Its addresses (one IPv4, one IPv6); default: chosen.")
@click.option("--gateway", multiple=True, metavar="ADDR", help="Gateway of the subnet it is in.")
@click.option("--ip-range", multiple=True, metavar="CIDR", help="Part of a subnet to give addresses from.")
@click.option("--aux-address", multiple=True, metavar="NAME=ADDR", help="Address that nobody gets; may be repeated.")
@click.option("--ipv6", is_flag=True, help="Also give IPv6 addresses.")
@click.option("--internal", is_flag=True, help="No way out of the network.")
@click.option("--attachable", is_flag=True, help="Plain containers may be attached.")
@click.option("--ingress", is_flag=True, help="This is the network of the routing mesh.")
@click.option("-l", "--label", multiple=True, metavar="KEY=VALUE", help="Label; may be repeated.")
@click.option("-o", "--opt", multiple=True, metavar="KEY=VALUE", help="Option of the driver; may be repeated.")
@click.argument("name")
@asynchronous
async def create(
    client: Client,
    driver: str,
    subnet: tuple[str, ...],
    gateway: tuple[str, ...],
    ip_range: tuple[str, ...],
    aux_address: tuple[str, ...],
    ipv6: bool,
    internal: bool,
    attachable: bool,
    ingress: bool,
    label: tuple[str, ...],
    opt: tuple[str, ...],
    name: str,
) -> None:
    """Create a network.

    \b
    Examples:
      hivemesh network create backend
      hivemesh network create --subnet 10.9.0.0/24 --gateway 10.9.0.1 --ipv6 backend
      hivemesh network create --subnet 10.8.0.0/24 --subnet fd08::/64 --gateway fd08::ff --internal --attachable lab
    """
    config = _ipam(subnet, gateway, ip_range, values.options(aux_address, "address"))
    answer = await client.post(
        "/networks/create",
        {
            "Name": name,
            "Driver": driver,
            "EnableIPv6": ipv6,
            "IPAM": {"Driver": "default", "Config": config},
            "Internal": internal,
            "Attachable": attachable,
            "Ingress": ingress,
            "Labels": values.pairs(label),
            "Options": values.options(opt, "option"),
        },
    )
    click.echo(answer["Id"])


def _ipam(
    subnets: Iterable[str], gateways: Iterable[str], ranges: Iterable[str], aside: Mapping[str, str]
) -> list[dict[str, Any]]:
    """All else goes with the subnets it is in, in whatever order it was given."""
    config: dict[Prefix, dict[str, Any]] = {parse_prefix(text): {"Subnet": text} for text in subnets}
    for key, what, given in (
        ("Gateway", "gateway", {text: parse_address(text, "gateway") for text in gateways}),
        ("IPRange", "range", {text: parse_prefix(text, "IP range").network_address for text in ranges}),
    ):
        for text, address in given.items():
            entry = next((entry for prefix, entry in config.items() if address in prefix), None)
            if entry is None:
                raise Invalid(f"no matching subnet for {what} {text}")
            if key in entry:
                raise Invalid(f"subnet {entry['Subnet']} has two of them: {what} {entry[key]} and {text}")
            entry[key] = text
    for name, text in aside.items():
        address = parse_address(text, "auxiliary address")
        entry = next((entry for prefix, entry in config.items() if address in prefix), None)
        if entry is None:
            raise Invalid(f"no matching subnet for auxiliary address {text}")
        entry.setdefault("AuxiliaryAddresses", {})[name] = text
    return list(config.values())


@network.command("ls")
@filter_option
@output.quiet_option
@output.format_option
@asynchronous
async def ls(client: Client, filters: tuple[str, ...], quiet: bool, form: str) -> None:
    """List the networks: the swarm's and, beside them, the engine's.

    \b
    Examples:
      hivemesh network ls
      hivemesh network ls --filter driver=overlay
    """
    found = await client.get("/networks", query(filters))
    found.sort(key=lambda value: value["Name"])
    output.listing(COLUMNS, found, lambda value: _row(value, form), quiet=quiet, form=form, key="Id")


def _row(value: dict[str, Any], form: str) -> dict[str, Any]:
    return {
        "ID": value["Id"] if form == "json" else value["Id"][:12],
        "Name": value["Name"],
        "Driver": value["Driver"],
        "Scope": value["Scope"],
        "Subnets": ", ".join(entry.get("Subnet", "") for entry in (value.get("IPAM") or {}).get("Config") or []),
    }


@network.command()
@click.option("-v", "--verbose", is_flag=True, help="Also the services and tasks on the network.")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@output.format_option
@asynchronous
async def inspect(client: Client, verbose: bool, networks: tuple[str, ...], form: str) -> None:
    """Show all that is known of networks, as JSON: on any node, managers or not.

    \b
    Examples:
      hivemesh network inspect ingress
      hivemesh network inspect --verbose backend
    """
    more = {"verbose": "true"} if verbose else None
    output.document([await client.get(f"/networks/{ref}", more) for ref in networks], form)


@network.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask before removing the routing mesh's network.")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@asynchronous
async def rm(client: Client, force: bool, networks: tuple[str, ...]) -> None:
    """Remove networks that no service uses.

    \b
    Examples:
      hivemesh network rm backend
    """

    async def remove(ref: str) -> str:
        value = await client.get(f"/networks/{ref}")
        if value.get("Ingress") and not force:
            click.confirm(f"{ref} carries the published ports of the swarm. Remove it?", abort=True, err=True)
        await client.delete(f"/networks/{value['Id']}")
        return ref

    await each(networks, remove)
