"""What `hivemesh secret` and `hivemesh config` have in common, which is nearly everything."""

import base64
import sys
from pathlib import Path
from typing import Any

import click

from hivemesh.cli import output, values
from hivemesh.cli.session import asynchronous, each, filter_option, query
from hivemesh.client import Client
from hivemesh.model.errors import Invalid

COLUMNS = {"ID": "ID", "Name": "NAME", "Created": "CREATED", "Updated": "UPDATED"}
DESCRIPTION = {
    "secret": "Secrets: files in memory for the tasks that may know them.",
    "config": "Configs: files for tasks, kept apart from their images.",
}


def group(noun: str) -> click.Group:
    """The commands of `secret` or `config`."""
    path = f"/{noun}s"

    def examples(*lines: str) -> str:
        return "\n\n\b\nExamples:\n" + "\n".join(f"  hivemesh {noun} {line}" for line in lines)

    commands = click.Group(noun, help=DESCRIPTION[noun])

    @commands.command(help=f"Make a {noun} of FILE, or of standard input (-)." + examples("create key key.pem"))
    @click.option("-l", "--label", multiple=True, metavar="KEY=VALUE", help="Label; may be repeated.")
    @click.option("--template-driver", type=click.Choice(["golang"]), help="Fill in placeholders for each task.")
    @click.argument("name")
    @click.argument("file")
    @asynchronous
    async def create(client: Client, label: tuple[str, ...], template_driver: str | None, name: str, file: str) -> None:
        spec: dict[str, Any] = {
            "Name": name,
            "Labels": values.pairs(label),
            "Data": base64.b64encode(_read(file)).decode(),
        }
        if template_driver:
            spec["Templating"] = {"Name": template_driver}
        click.echo((await client.post(f"{path}/create", spec))["ID"])

    @commands.command("ls", help=f"List the {noun}s." + examples("ls", "ls --filter label=stage=test"))
    @filter_option
    @output.quiet_option
    @output.format_option
    @asynchronous
    async def ls(client: Client, filters: tuple[str, ...], quiet: bool, form: str) -> None:
        found = await client.get(path, query(filters))
        found.sort(key=lambda value: value["Spec"]["Name"])
        output.listing(COLUMNS, found, _row, quiet=quiet, form=form)

    shown = "all that is known of" if noun == "config" else "what may be known of"

    @commands.command(
        help=f"Show {shown} {noun}s, as JSON." + examples(f"inspect {'site.conf' if noun == 'config' else 'key'}")
    )
    @click.argument("references", nargs=-1, required=True, metavar=f"{noun.upper()}...")
    @output.format_option
    @asynchronous
    async def inspect(client: Client, references: tuple[str, ...], form: str) -> None:
        output.document([await client.get(f"{path}/{ref}") for ref in references], form)

    @commands.command(help=f"Remove {noun}s that no service uses." + examples("rm old"))
    @click.argument("references", nargs=-1, required=True, metavar=f"{noun.upper()}...")
    @asynchronous
    async def rm(client: Client, references: tuple[str, ...]) -> None:
        async def remove(ref: str) -> str:
            await client.delete(f"{path}/{ref}")
            return ref

        await each(references, remove)

    return commands


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror}") from None


def _row(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "ID": value["ID"],
        "Name": value["Spec"]["Name"],
        "Created": output.ago(value["CreatedAt"]),
        "Updated": output.ago(value["UpdatedAt"]),
    }
