"""Options of `service create` and `service update` that say which secrets and configs the tasks find."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from hivemesh.cli.servicespec import Json
from hivemesh.client import Client
from hivemesh.model.errors import Invalid, NotFound

NOUNS = ("secret", "config")
KEYS = {"source": "source", "src": "source", "target": "target", "uid": "uid", "gid": "gid", "mode": "mode"}


def create_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is new: all of them."""
    for noun in reversed(NOUNS):
        text = f"{noun.title()} to find as a file: NAME, or source=NAME,target=PATH,uid=N,gid=N,mode=0400."
        command = click.option(f"--{noun}", multiple=True, metavar=noun.upper(), help=text)(command)
    return command


def update_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For what is there: `-add` and `-rm` of each."""
    for noun in reversed(NOUNS):
        remove = click.option(f"--{noun}-rm", multiple=True, metavar=noun.upper(), help="One less; may be repeated.")
        add = click.option(f"--{noun}-add", multiple=True, metavar=noun.upper(), help=f"One more {noun}, as at create.")
        command = add(remove(command))
    return command


async def apply_created(client: Client, container: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `create_options` into a container's specification, in place."""
    for noun in NOUNS:
        container[f"{noun.title()}s"] = await _references(client, noun, given[noun])


async def apply_updated(client: Client, container: Json, given: Mapping[str, Any]) -> None:
    """Write what was given of `update_options` into a container's specification, in place."""
    for noun in NOUNS:
        left = list(container.get(f"{noun.title()}s") or ())
        for name in given[f"{noun}_rm"]:
            kept = [reference for reference in left if reference[f"{noun.title()}Name"] != name]
            if len(kept) == len(left):
                raise NotFound(f"this service has no {noun} {name}")
            left = kept
        container[f"{noun.title()}s"] = left + await _references(client, noun, given[f"{noun}_add"])


async def _references(client: Client, noun: str, texts: Iterable[str]) -> list[Json]:
    wanted = [parse(noun, text) for text in texts]
    if not wanted:
        return []
    filters = json.dumps({"name": {name: True for name, _ in wanted}})
    known = {value["Spec"]["Name"]: value["ID"] for value in await client.get(f"/{noun}s", {"filters": filters})}
    for name, _ in wanted:
        if name not in known:
            raise NotFound(f"{noun} not found: {name}")
    word = noun.title()
    return [{"File": file, f"{word}ID": known[name], f"{word}Name": name} for name, file in wanted]


def parse(noun: str, text: str) -> tuple[str, Json]:
    """The name and the file of `key`, or of `source=key,target=ssl.key,uid=0,gid=0,mode=0400`. Raises `Invalid`."""
    if "=" not in text:
        return text, _file(text)
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key.strip().lower() not in KEYS:
            raise Invalid(f"invalid {noun} {text!r}: unknown key {key!r}; use source, target, uid, gid and mode")
        found[KEYS[key.strip().lower()]] = value
    if not found.get("source"):
        raise Invalid(f"invalid {noun} {text!r}: source is missing")
    try:
        mode = int(found.get("mode", "0444"), 8)
    except ValueError:
        raise Invalid(f"invalid {noun} {text!r}: mode {found['mode']!r} is no octal number such as 0400") from None
    name = found["source"]
    return name, _file(found.get("target") or name, found.get("uid", "0"), found.get("gid", "0"), mode)


def _file(target: str, uid: str = "0", gid: str = "0", mode: int = 0o444) -> Json:
    return {"Name": target, "UID": uid, "GID": gid, "Mode": mode}
