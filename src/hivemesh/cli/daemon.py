"""`hivemeshd`, also `hivemesh daemon`: the process that runs on every node."""

import asyncio
import contextlib
import logging
import os
import resource
import shlex
import signal
import sys
from pathlib import Path
from typing import Literal

import click

from hivemesh.config import DATA_DIR, RUN_DIR, SOCKET_NAME, DaemonConfig
from hivemesh.model.errors import HivemeshError
from hivemesh.model.generic import GenericResource
from hivemesh.model.generic import parse as parse_generic

LEVELS = ("debug", "info", "warning", "error")


def _generic(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[GenericResource, ...]:
    try:
        return parse_generic(values)
    except HivemeshError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    "daemon",
    epilog="""\b
Examples:
  hivemeshd
  hivemeshd --data-dir /srv/hivemesh --label rack=4
  hivemeshd --node-generic-resource SSD=3 --node-generic-resource GPU=id1
  hivemeshd --engine process --process-image localhost/web="python3 -m http.server 80"
""",
)
@click.option("--data-dir", type=click.Path(path_type=Path), default=DATA_DIR, show_default=True, help="Lasting state.")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), default=RUN_DIR, show_default=True, help="State until reboot."
)
@click.option("--socket", type=click.Path(path_type=Path), help=f"The API's socket.  [default: RUN_DIR/{SOCKET_NAME}]")
@click.option("--engine", type=click.Choice(["podman", "process"]), default="podman", show_default=True,
              help="What runs tasks: containers, or commands of this host inside the task's network.")  # fmt: skip
@click.option("--process-image", "images", multiple=True, metavar="NAME=COMMAND",
              help="What the process engine runs for an image; may be repeated.")  # fmt: skip
@click.option("--balancer", type=click.Choice(["nftables", "ipvs"]), default="nftables", show_default=True,
              help="What spreads connections over a service's tasks, unless its labels say.")  # fmt: skip
@click.option("--socket-balancing", type=click.Choice(["on", "off"]), default="on", show_default=True,
              help="Lead sockets to a service's tasks as they connect (eBPF), where the kernel allows it; nftables "
                   "does the rest, or all.")  # fmt: skip
@click.option("--store", default="", metavar="URL",
              help="Keep the swarm's state in this etcd cluster: etcd://HOST:PORT[,HOST:PORT...][/PREFIX], or etcds:// "
                   "with ?ca=FILE&cert=FILE&key=FILE. Without it managers run their own.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of this engine; may be repeated.")
@click.option("--node-generic-resource", "generic", multiple=True, metavar="NAME=VALUE", callback=_generic,
              help="What tasks may take of this node: SSD=3, or GPU=id1 for each; may be repeated.")  # fmt: skip
@click.option(
    "--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What to log, on stderr."
)
def main(
    data_dir: Path,
    run_dir: Path,
    socket: Path | None,
    engine: str,
    images: tuple[str, ...],
    balancer: Literal["nftables", "ipvs"],
    socket_balancing: str,
    store: str,
    labels: tuple[str, ...],
    generic: tuple[GenericResource, ...],
    log_level: str,
) -> None:
    """Run this machine's part of a swarm, until SIGTERM; tasks and their network carry on without it."""
    if os.geteuid() != 0:
        raise click.ClickException("hivemeshd makes network namespaces and runs containers: start it as root")
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _allow_many_files()
    config = DaemonConfig(
        data_dir=data_dir.absolute(),
        run_dir=run_dir.absolute(),
        socket=(socket or run_dir / SOCKET_NAME).absolute(),
        engine=engine,
        process_images={name: tuple(shlex.split(command)) for name, command in _pairs(images, "--process-image")},
        balancer=balancer,
        socket_balancing=socket_balancing == "on",
        store=store,
        labels=dict(_pairs(labels, "--label")),
        generic=generic,
    )
    try:
        _run(config)
    except* HivemeshError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise click.ClickException(str(error)) from None


def _allow_many_files() -> None:
    """A sandbox costs four descriptors; the soft limit of 1024 would end at 250."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _pairs(values: tuple[str, ...], option: str) -> list[tuple[str, str]]:
    pairs = [tuple(value.split("=", 1)) for value in values]
    for value, pair in zip(values, pairs, strict=True):
        if len(pair) != 2 or not pair[0]:
            raise click.UsageError(f"invalid {option} {value!r}: expected NAME=VALUE")
    return [(pair[0], pair[1]) for pair in pairs]


def _run(config: DaemonConfig) -> None:
    import uvloop  # costs what a `--help` need not pay

    from hivemesh.clock import SystemClock
    from hivemesh.daemon import Daemon

    async def serve() -> None:
        running = asyncio.create_task(Daemon(config, SystemClock()).run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running

    uvloop.run(serve())
