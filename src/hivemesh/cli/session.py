"""From a command to the daemon and back: one event loop per command."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from hivemesh.client import Client
from hivemesh.model.errors import HivemeshError, Invalid

P = ParamSpec("P")
R = TypeVar("R")


def asynchronous(function: Callable[Concatenate[Client, P], Awaitable[R]]) -> Callable[P, R]:
    """Run an async command body with a client of the daemon that `--host` or the environment names."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        client = Client(click.get_current_context().find_root().obj)

        async def body() -> R:
            return await function(client, *args, **kwargs)

        return asyncio.run(body())

    return run


def filter_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only what matches; may be repeated."
    )(command)


def query(filters: Iterable[str], **more: str) -> dict[str, str]:
    """`--filter` values as the API's query."""
    result: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise Invalid(f"invalid filter {text!r}: write key=value")
        result.setdefault(key, []).append(value)
    return {
        **(
            {"filters": json.dumps({key: dict.fromkeys(values, True) for key, values in result.items()})}
            if result
            else {}
        ),
        **more,
    }


async def each(references: Iterable[str], action: Callable[[str], Awaitable[str]]) -> None:
    """Do `action` on every reference and print what it returns; report failures, and go on with the rest."""
    failed = False
    for reference in references:
        try:
            click.echo(await action(reference))
        except HivemeshError as error:
            click.echo(f"Error: {error}", err=True)
            failed = True
    if failed:
        raise click.exceptions.Exit(1)


async def own_node(client: Client, reference: str) -> str:
    """The node `self` stands for."""
    if reference != "self":
        return reference
    identifier = str((await client.get("/info"))["Swarm"]["NodeID"])
    if not identifier:
        raise Invalid("this machine is not part of a swarm: there is no node self")
    return identifier
