"""`hivemesh swarm update`, `ca`, `unlock-key` and `unlock`: settings of a swarm that stands, and its keys."""

import asyncio
from pathlib import Path
from typing import Any

import click

from hivemesh.cli import values
from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.model.errors import Invalid

INTERVAL = 0.2
"""Seconds between looks at how far a rotation is."""
PROTECTION = (
    "To unlock a swarm manager after it restarts, run `hivemesh swarm unlock` and provide the following key:\n\n"
    "    {key}\n\n"
    "Remember to store this key in a password manager, since without it you will not be able to restart the manager."
)


class Duration(click.ParamType[int]):
    """`90d` is not known to the API's clients, so neither here: hours are the longest unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else values.duration(value)
        except Invalid as error:
            self.fail(str(error), param, ctx)


async def change(client: Client, edit: Any, **renewal: str) -> None:
    """Read the settings, let `edit` change them in place, write them back."""
    found = await client.get("/swarm")
    edit(found["Spec"])
    await client.post("/swarm/update", found["Spec"], {"version": found["Version"]["Index"], **renewal})


async def show_unlock_key(client: Client) -> None:
    key = (await client.get("/swarm/unlockkey"))["UnlockKey"]
    click.echo(f"\n{PROTECTION.format(key=key)}")


@click.command()
@click.option("--task-history-limit", type=int, help="Tasks that are over, kept for each place of a service.")
@click.option("--dispatcher-heartbeat", type=Duration(), help="How often nodes give a sign of life.")
@click.option("--cert-expiry", type=Duration(), help="How long certificates hold that are signed from now on.")
@click.option("--autolock/--no-autolock", default=None, help="Whether managers need the unlock key when they start.")
@asynchronous
async def update(
    client: Client,
    task_history_limit: int | None,
    dispatcher_heartbeat: int | None,
    cert_expiry: int | None,
    autolock: bool | None,
) -> None:
    """Change the swarm's settings.

    \b
    Examples:
      hivemesh swarm update --task-history-limit 2
      hivemesh swarm update --cert-expiry 720h --dispatcher-heartbeat 10s
      hivemesh swarm update --autolock
    """
    if task_history_limit is dispatcher_heartbeat is cert_expiry is autolock is None:
        raise click.UsageError("nothing to change: give at least one option")
    locked_now = False

    def edit(spec: dict[str, Any]) -> None:
        nonlocal locked_now
        if task_history_limit is not None:
            spec["Orchestration"]["TaskHistoryRetentionLimit"] = task_history_limit
        if dispatcher_heartbeat is not None:
            spec["Dispatcher"]["HeartbeatPeriod"] = dispatcher_heartbeat
        if cert_expiry is not None:
            spec["CAConfig"]["NodeCertExpiry"] = cert_expiry
        if autolock is not None:
            locked_now = autolock and not spec["EncryptionConfig"]["AutoLockManagers"]
            spec["EncryptionConfig"]["AutoLockManagers"] = autolock

    await change(client, edit)
    click.echo("Swarm updated.")
    if locked_now:
        await show_unlock_key(client)


@click.command("unlock-key")
@click.option("-q", "--quiet", is_flag=True, help="Print the key only.")
@click.option("--rotate", is_flag=True, help="Make a new key first; the old one then unlocks nothing.")
@asynchronous
async def unlock_key(client: Client, quiet: bool, rotate: bool) -> None:
    """Show the key that unlocks managers.

    \b
    Examples:
      hivemesh swarm unlock-key
      hivemesh swarm unlock-key --rotate --quiet
    """
    if rotate:
        if not (await client.get("/swarm"))["Spec"]["EncryptionConfig"]["AutoLockManagers"]:
            raise Invalid("cannot rotate because autolock is not turned on: do so with `swarm update --autolock`")
        await change(client, lambda spec: None, rotateManagerUnlockKey="true")
        if not quiet:
            click.echo("Successfully rotated manager unlock key.")
    key = (await client.get("/swarm/unlockkey"))["UnlockKey"]
    if not key:
        raise Invalid("no unlock key is set: managers are not locked; `swarm update --autolock` does so")
    if quiet:
        click.echo(key)
    else:
        await show_unlock_key(client)


@click.command()
@click.password_option("--key", prompt="Enter unlock key", confirmation_prompt=False, envvar="HIVEMESH_UNLOCK_KEY",
                       help="The key; asked for unless given (or in HIVEMESH_UNLOCK_KEY).")  # fmt: skip
@asynchronous
async def unlock(client: Client, key: str) -> None:
    """Let this manager, which was restarted, use its keys again.

    \b
    Examples:
      hivemesh swarm unlock
      hivemesh swarm unlock --key SWMKEY-1-...
    """
    await client.post("/swarm/unlock", {"UnlockKey": key.strip()})
    click.echo("This manager is unlocked.")


@click.command()
@click.option("--rotate", is_flag=True, help="Replace the root; all nodes get new certificates.")
@click.option(
    "--ca-cert", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Root to change to (PEM)."
)
@click.option("--ca-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Its key (PEM).")
@click.option("--cert-expiry", type=Duration(), help="How long certificates hold that are signed from now on.")
@click.option("-d", "--detach", is_flag=True, help="Return at once, without waiting for the nodes.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while waiting.")
@asynchronous
async def ca(
    client: Client,
    rotate: bool,
    ca_cert: Path | None,
    ca_key: Path | None,
    cert_expiry: int | None,
    detach: bool,
    quiet: bool,
) -> None:
    """Show the swarm's root certificate, or replace it under running services.

    \b
    Examples:
      hivemesh swarm ca
      hivemesh swarm ca --rotate
      hivemesh swarm ca --rotate --ca-cert root.pem --ca-key root-key.pem
    """
    if not rotate:
        if ca_cert or ca_key or cert_expiry is not None or detach or quiet:
            raise click.UsageError("these options need --rotate")
        click.echo((await client.get("/swarm"))["TLSInfo"]["TrustRoot"], nl=False)
        return
    if (ca_cert is None) != (ca_key is None):
        raise click.UsageError("--ca-cert and --ca-key belong together")

    def edit(spec: dict[str, Any]) -> None:
        config = spec["CAConfig"]
        if cert_expiry is not None:
            config["NodeCertExpiry"] = cert_expiry
        if ca_cert is not None and ca_key is not None:
            config["SigningCACert"], config["SigningCAKey"] = ca_cert.read_text(), ca_key.read_text()
        else:
            config["SigningCACert"] = config["SigningCAKey"] = ""
            config["ForceRotate"] = config.get("ForceRotate", 0) + 1

    await change(client, edit)
    if detach:
        return
    await _rotated(client, quiet)
    click.echo((await client.get("/swarm"))["TLSInfo"]["TrustRoot"], nl=False)


async def _rotated(client: Client, quiet: bool) -> None:
    """Until every node has the new root, and trusts nothing else; says who is waited for."""
    said = ""
    while True:
        found, nodes = await client.get("/swarm"), await client.get("/nodes")
        wanted = found["TLSInfo"]
        late = sorted(node["Description"]["Hostname"] for node in nodes if node["Description"]["TLSInfo"] != wanted)
        if not found["RootRotationInProgress"] and not late:
            return
        issued = sum(
            node["Description"]["TLSInfo"].get("CertIssuerPublicKey") == wanted["CertIssuerPublicKey"] for node in nodes
        )
        text = f"{issued} of {len(nodes)} nodes have new certificates; waiting for {', '.join(late) or 'managers'}"
        if text != said and not quiet:
            click.echo(text, err=True)
            said = text
        await asyncio.sleep(INTERVAL)
