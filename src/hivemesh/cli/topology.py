"""`hivemesh topology`: the swarm as a picture."""

import sys
from pathlib import Path

import click

from hivemesh.cli.session import asynchronous
from hivemesh.client import Client
from hivemesh.model.errors import Unavailable
from hivemesh.web.dot import dot
from hivemesh.web.outline import outline
from hivemesh.web.svg import svg
from hivemesh.wire import codec
from hivemesh.wire.topology import Picture

FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@click.option("--svg", "as_svg", type=FILE, metavar="FILE", help="Draw it; - is standard output.")
@click.option("--dot", "as_dot", type=FILE, metavar="FILE", help="As text for Graphviz.")
@click.option("--json", "as_json", type=FILE, metavar="FILE", help="All that is known, with places.")
@click.option("--detail", type=click.Choice(["full", "compact"]),
              help="Each sandbox with its links, or none.  [default: as many as fit]")  # fmt: skip
@asynchronous
async def topology(
    client: Client, as_svg: Path | None, as_dot: Path | None, as_json: Path | None, detail: str | None
) -> None:  # fmt: skip
    """Draw the swarm as its managers want it and as all kernels have it now. Ask a manager.

    Without a file it is told as an outline. The same picture, live, is at http://127.0.0.1:2378/ of each manager.

    \b
    Examples:
      hivemesh topology
      hivemesh topology --svg swarm.svg
      hivemesh topology --dot - | dot -Tpdf -o swarm.pdf
    """
    picture = codec.convert(await client.get("/hivemesh/topology", {"detail": detail} if detail else None), Picture)
    wanted = {as_svg: svg, as_dot: dot, as_json: _json}
    wanted.pop(None, None)
    if not wanted:
        click.echo(outline(picture), nl=False)
    for path, form in wanted.items():
        assert path is not None
        _write(path, form(picture))


def _json(picture: Picture) -> str:
    return codec.to_json(picture).decode() + "\n"


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror or error}; choose another file, or -") from None
