"""`hivemesh swarm snapshot`: what the managers know, in one file."""

from pathlib import Path

import click

from hivemesh.agent.private import write_private
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.model.errors import Invalid


@click.group()
def snapshot() -> None:
    """Save all that the managers know, and begin again from it."""


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@asynchronous
async def save(client: Client, file: Path) -> None:
    """Write the swarm's whole state to FILE. It holds the swarm's keys and secrets: keep it where nobody else reads.

    \b
    Examples:
      hivemesh swarm snapshot save /srv/backup/swarm-monday
    """
    data = await client.download("/hivemesh/swarm/snapshot")
    try:
        write_private(file, data)
    except OSError as error:
        raise Invalid(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"Saved the swarm to {file} ({len(data)} bytes). It holds the swarm's keys: keep it safe.")


@snapshot.command()
@click.option("--advertise-addr", default="", metavar="ADDR", help="Address (or interface) that other nodes reach.")
@click.option("--listen-addr", default="0.0.0.0:2377", show_default=True, metavar="ADDR:PORT", help="Managers' port.")
@click.option("--data-path-addr", default="", metavar="ADDR", help="Address (or interface) for VXLAN, if another.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@asynchronous
async def restore(client: Client, advertise_addr: str, listen_addr: str, data_path_addr: str, file: Path) -> None:
    """Make this machine, which is in no swarm, the only manager of the swarm saved in FILE.

    Its nodes come back by themselves if this machine has the address of one of its managers; others join anew.

    \b
    Examples:
      hivemesh swarm snapshot restore --advertise-addr 192.0.2.10 /srv/backup/swarm-monday
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror}") from error
    place = {"AdvertiseAddr": advertise_addr, "ListenAddr": listen_addr, "DataPathAddr": data_path_addr}
    node = await client.upload("/hivemesh/swarm/snapshot", data, place)
    click.echo(f"Swarm restored: current node ({node}) is now its only manager.")
