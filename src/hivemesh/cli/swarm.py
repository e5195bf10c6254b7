"""`hivemesh swarm`: enter, leave and configure a swarm."""

from typing import Any

import click

from hivemesh.cli import swarmkeys
from hivemesh.cli.node import warn_of_managers
from hivemesh.cli.session import asynchronous
from hivemesh.cli.snapshot import snapshot
from hivemesh.client import Client
from hivemesh.model.errors import HivemeshError, Invalid

AVAILABILITY = click.Choice(["active", "pause", "drain"])


@click.group()
def swarm() -> None:
    """Enter, leave and configure a swarm."""


for command in (snapshot, swarmkeys.update, swarmkeys.ca, swarmkeys.unlock_key, swarmkeys.unlock):
    swarm.add_command(command)


@swarm.command()
@click.option("--force-new-cluster", is_flag=True, help="On a manager that lost the others: go on without them.")
@click.option("--advertise-addr", default="", metavar="ADDR", help="Address (or interface) that other nodes reach.")
@click.option("--listen-addr", default="0.0.0.0:2377", show_default=True, metavar="ADDR:PORT", help="Managers' port.")
@click.option("--data-path-addr", default="", metavar="ADDR", help="Address (or interface) for VXLAN, if another.")
@click.option("--data-path-port", default=0, metavar="PORT", help="UDP port for VXLAN (default 4789).")
@click.option("--default-addr-pool", multiple=True, metavar="CIDR", help="Range to cut networks from; may be repeated.")
@click.option("--default-addr-pool-mask-length", default=24, show_default=True, help="Size of each network.")
@click.option("--availability", type=AVAILABILITY, default="active", show_default=True, help="Of this node.")
@click.option("--autolock", is_flag=True, help="Managers need a key when they start.")
@click.option("--task-history-limit", default=5, show_default=True, help="Tasks that are over, kept for each place.")
@click.option("--dispatcher-heartbeat", type=swarmkeys.Duration(), default="5s", show_default=True, help="Of nodes.")
@click.option("--cert-expiry", type=swarmkeys.Duration(), default="2160h", show_default=True, help="Of certificates.")
@asynchronous
async def init(
    client: Client,
    force_new_cluster: bool,
    advertise_addr: str,
    listen_addr: str,
    data_path_addr: str,
    data_path_port: int,
    default_addr_pool: tuple[str, ...],
    default_addr_pool_mask_length: int,
    availability: str,
    autolock: bool,
    task_history_limit: int,
    dispatcher_heartbeat: int,
    cert_expiry: int,
) -> None:
    """Make this machine the first manager of a new swarm.

    \b
    Examples:
      hivemesh swarm init
      hivemesh swarm init --advertise-addr 192.0.2.10 --default-addr-pool 10.20.0.0/16
      hivemesh swarm init --force-new-cluster
    """
    node = await _enter(
        client,
        "/swarm/init",
        {
            "ListenAddr": listen_addr,
            "AdvertiseAddr": advertise_addr,
            "DataPathAddr": data_path_addr,
            "DataPathPort": data_path_port,
            "DefaultAddrPool": default_addr_pool,
            "SubnetSize": default_addr_pool_mask_length,
            "Availability": availability,
            "ForceNewCluster": force_new_cluster,
            "AutoLockManagers": autolock,
            "Spec": {
                "Orchestration": {"TaskHistoryRetentionLimit": task_history_limit},
                "Dispatcher": {"HeartbeatPeriod": dispatcher_heartbeat},
                "CAConfig": {"NodeCertExpiry": cert_expiry},
                "EncryptionConfig": {"AutoLockManagers": autolock},
            },
        },
    )
    click.echo(f"Swarm initialized: current node ({node}) is now a manager.\n")
    click.echo("To add a worker to this swarm, run the following command:\n")
    click.echo(f"    {await _join_command(client, 'Worker')}")
    if autolock:
        await swarmkeys.show_unlock_key(client)


@swarm.command()
@click.option("--token", required=True, help="Join token, as `hivemesh swarm join-token worker` shows it.")
@click.option("--advertise-addr", default="", metavar="ADDR", help="Address (or interface) that other nodes reach.")
@click.option("--listen-addr", default="0.0.0.0:2377", show_default=True, metavar="ADDR:PORT", help="Managers' port.")
@click.option("--data-path-addr", default="", metavar="ADDR", help="Address (or interface) for VXLAN, if another.")
@click.option("--availability", type=AVAILABILITY, default="active", show_default=True, help="Of this node.")
@click.argument("manager", metavar="HOST:PORT")
@asynchronous
async def join(
    client: Client,
    token: str,
    advertise_addr: str,
    listen_addr: str,
    data_path_addr: str,
    availability: str,
    manager: str,
) -> None:
    """Join the swarm of the manager at HOST:PORT, as what the token says.

    \b
    Examples:
      hivemesh swarm join --token SWMTKN-1-... 192.0.2.10:2377
    """
    await _enter(
        client,
        "/swarm/join",
        {
            "ListenAddr": listen_addr,
            "AdvertiseAddr": advertise_addr,
            "DataPathAddr": data_path_addr,
            "RemoteAddrs": [manager],
            "JoinToken": token,
            "Availability": availability,
        },
    )
    role = "manager" if (await client.get("/info"))["Swarm"]["ControlAvailable"] else "worker"
    click.echo(f"This node joined a swarm as a {role}.")
    await warn_of_managers(client)


async def _enter(client: Client, path: str, body: dict[str, Any]) -> Any:
    """The daemon says what is wrong, and we, as Docker's CLI does, by which option to put it right."""
    try:
        return await client.post(path, body)
    except HivemeshError as error:
        if "could not choose an IP address to advertise" in str(error):
            raise Invalid(f"{error} - specify one with --advertise-addr") from error
        raise


@swarm.command()
@click.option("-f", "--force", is_flag=True, help="Leave even as a manager: the last one ends the swarm.")
@asynchronous
async def leave(client: Client, force: bool) -> None:
    """Leave the swarm: this machine's tasks stop.

    \b
    Examples:
      hivemesh swarm leave
      hivemesh swarm leave --force
    """
    await client.post("/swarm/leave", query={"force": int(force)})
    click.echo("Node left the swarm.")


@swarm.command("join-token")
@click.option("-q", "--quiet", is_flag=True, help="Print the token only.")
@click.option("--rotate", is_flag=True, help="Make a new token first; the old one then admits nobody.")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@asynchronous
async def join_token(client: Client, quiet: bool, rotate: bool, role: str) -> None:
    """Show how to join as ROLE.

    \b
    Examples:
      hivemesh swarm join-token worker
      hivemesh swarm join-token --rotate --quiet worker
    """
    if rotate:
        value = await client.get("/swarm")
        version = value["Version"]["Index"]
        await client.post("/swarm/update", value["Spec"], {"version": version, f"rotate{role.title()}Token": "true"})
    if quiet:
        click.echo((await client.get("/swarm"))["JoinTokens"][role.title()])
        return
    if rotate:
        click.echo(f"Successfully rotated {role} join token.\n")
    click.echo(f"To add a {role} to this swarm, run the following command:\n")
    click.echo(f"    {await _join_command(client, role.title())}")


async def _join_command(client: Client, role: str) -> str:
    token: str = (await client.get("/swarm"))["JoinTokens"][role]
    here: dict[str, Any] = (await client.get("/info"))["Swarm"]
    address = (await client.get(f"/nodes/{here['NodeID']}"))["ManagerStatus"]["Addr"]
    return f"hivemesh swarm join --token {token} {address}"
