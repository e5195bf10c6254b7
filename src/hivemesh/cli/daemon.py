"""`hivemeshd`, also `hivemesh daemon`: the process that runs on every node."""

import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import shlex
import signal
import sys
from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from hivemesh.config import DATA_DIR, RUN_DIR, SOCKET_NAME, WEB, Counts, DaemonConfig
from hivemesh.model.addr import parse_host_port
from hivemesh.model.errors import HivemeshError
from hivemesh.model.generic import GenericResource, unparse
from hivemesh.model.generic import parse as parse_generic

LEVELS = ("debug", "info", "warning", "error")


def _generic(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[GenericResource, ...]:
    try:
        return parse_generic(values)
    except HivemeshError as error:
        raise click.BadParameter(str(error)) from None


def _hosts(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> Path | None:
    """Docker's option for where to listen. Raises `BadParameter` for all but one unix socket."""
    for url in values:
        if not url.startswith("unix:///"):
            raise click.BadParameter(
                f"{url!r}: the API is served on a unix socket only, since whoever speaks to it is root here. "
                "Use unix:///PATH here, and `docker -H ssh://USER@HOST` to reach it from elsewhere; there is no tcp:// "
                "with --tlsverify, and none without"
            )
    if len(values) > 1:
        raise click.BadParameter("there is one socket: name it once")
    return Path(values[0].removeprefix("unix://")) if values else None


@click.command(
    "daemon",
    epilog="""\b
Examples:
  hivemeshd
  hivemeshd --data-dir /srv/hivemesh --label rack=4
  hivemeshd --install --start --label rack=4
  hivemeshd --node-generic-resource SSD=3 --node-generic-resource GPU=id1
  hivemeshd --engine process --process-image localhost/web="python3 -m http.server 80"
""",
)
@click.option("--data-dir", type=click.Path(path_type=Path), default=DATA_DIR, show_default=True, help="Lasting state.")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), default=RUN_DIR, show_default=True, help="State until reboot."
)
@click.option("--socket", type=click.Path(path_type=Path), help=f"The API's socket.  [default: RUN_DIR/{SOCKET_NAME}]")
@click.option("-G", "--group", default="", metavar="GROUP",
              help="May use the socket, which makes them root.  [default: hivemesh, else docker]")  # fmt: skip
@click.option("-H", "--host", "hosts", multiple=True, metavar="URL", callback=_hosts,
              help="unix://PATH, as --socket PATH. Not over TCP: use `docker -H ssh://USER@HOST`.")  # fmt: skip
@click.option("--engine", type=click.Choice(["podman", "process"]), default="podman", show_default=True,
              help="What runs tasks: containers, or commands of this host inside the task's network.")  # fmt: skip
@click.option("--process-image", "images", multiple=True, metavar="NAME=COMMAND",
              help="What the process engine runs for an image; may be repeated.")  # fmt: skip
@click.option("--balancer", type=click.Choice(["nftables", "ipvs"]), default="nftables", show_default=True,
              help="What spreads connections over a service's tasks, unless its labels say.")  # fmt: skip
@click.option("--socket-balancing", type=click.Choice(["on", "off"]), default="on", show_default=True,
              help="Lead sockets to a service's tasks as they connect (eBPF), where the kernel allows it; nftables "
                   "does the rest, or all.")  # fmt: skip
@click.option("--count", "counts", type=click.Choice(["bytes", "connections", "off"]), default="bytes",
              show_default=True,
              help="What the kernel counts of each published port and backend, for metrics and `hivemesh top`: bytes "
                   "take one look-up a packet, connections one each.")  # fmt: skip
@click.option("--store", default="", metavar="URL",
              help="Keep the swarm's state in this etcd cluster: etcd://HOST:PORT[,HOST:PORT...][/PREFIX], or etcds:// "
                   "with ?ca=FILE&cert=FILE&key=FILE. Without it managers run their own.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of this engine; may be repeated.")
@click.option("--node-generic-resource", "generic", multiple=True, metavar="NAME=VALUE", callback=_generic,
              help="What tasks may take of this node: SSD=3, or GPU=id1 for each; may be repeated.")  # fmt: skip
@click.option("--web", default=WEB, show_default=True, metavar="ADDRESS:PORT|off",
              help="Where the topology page and the metrics are served. Beyond loopback with TLS, to who has the token "
                   "in DATA_DIR/web/token.")  # fmt: skip
@click.option("--web-certificate", type=click.Path(path_type=Path), metavar="FILE",
              help="For TLS there; with its key.  [default: one signed by itself]")  # fmt: skip
@click.option("--web-key", type=click.Path(path_type=Path), metavar="FILE", help="The certificate's key.")
@click.option("--install", is_flag=True, help="Have systemd start it at each boot, with the other options given here.")
@click.option("--start", is_flag=True, help="With --install: start it now, too.")
@click.option("--uninstall", is_flag=True, help="Undo --install; containers and the node's state stay.")
@click.option(
    "--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What to log, on stderr."
)
@click.pass_context
def main(
    context: click.Context,
    data_dir: Path,
    run_dir: Path,
    socket: Path | None,
    group: str,
    hosts: Path | None,
    engine: str,
    images: tuple[str, ...],
    balancer: Literal["nftables", "ipvs"],
    socket_balancing: str,
    counts: Counts,
    store: str,
    labels: tuple[str, ...],
    generic: tuple[GenericResource, ...],
    web: str,
    web_certificate: Path | None,
    web_key: Path | None,
    install: bool,
    start: bool,
    uninstall: bool,
    log_level: str,
) -> None:
    """Run this machine's part of a swarm, until SIGTERM; tasks and their network carry on without it."""
    if start and not install:
        raise click.UsageError("--start belongs to --install; without both, hivemeshd runs in the foreground")
    if install and uninstall:
        raise click.UsageError("choose --install or --uninstall")
    if socket is not None and hosts is not None:
        raise click.UsageError("--socket and --host both name the socket: choose one")
    if (web_certificate is None) != (web_key is None):
        raise click.UsageError("give --web-certificate and --web-key together, or neither")
    if os.geteuid() != 0:
        raise click.ClickException("hivemeshd makes network namespaces and runs containers: start it as root")
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if install or uninstall:
        _installing(context, start=start, uninstall=uninstall)
        return
    faulthandler.register(signal.SIGUSR1)  # to stderr, whatever the threads are stuck in; as `dockerd` does
    _allow_many_files()
    config = DaemonConfig(
        data_dir=data_dir.absolute(),
        run_dir=run_dir.absolute(),
        socket=(socket or hosts or run_dir / SOCKET_NAME).absolute(),
        group=group,
        engine=engine,
        process_images={name: tuple(shlex.split(command)) for name, command in _pairs(images, "--process-image")},
        balancer=balancer,
        socket_balancing=socket_balancing == "on",
        counts=counts,
        store=store,
        labels=dict(_pairs(labels, "--label")),
        generic=generic,
        web="" if web == "off" else _web_address(web),
        web_certificate=web_certificate,
        web_key=web_key,
    )
    try:
        _run(config)
    except* HivemeshError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise click.ClickException(str(error)) from None


def _web_address(text: str) -> str:
    try:
        parse_host_port(text, 1, "web address")
    except HivemeshError as error:
        raise click.UsageError(f"--web: {error}") from None
    return text


def _installing(context: click.Context, *, start: bool, uninstall: bool) -> None:
    from hivemesh.daemon import install as unit

    try:
        if uninstall:
            click.echo(unit.uninstall())
        else:
            click.echo(unit.install(_given(context), start=start))
    except HivemeshError as error:
        raise click.ClickException(str(error)) from None


def _given(context: click.Context) -> list[str]:
    """The options on the command line, with absolute paths, but for those about installing."""
    found = []
    for option in context.command.params:
        name = option.name or ""
        said = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not said or name in ("install", "start", "uninstall"):
            continue
        flag, value = option.opts[-1], context.params[name]
        if name == "generic":  # parsed already; as it was written, one by one
            found += [f"{flag}={text}" for text in unparse(value)]
        elif name == "hosts":
            found.append(f"--socket={value.absolute()}")
        elif isinstance(value, tuple):
            found += [f"{flag}={text}" for text in value]
        else:
            found.append(f"{flag}={value.absolute() if isinstance(value, Path) else value}")
    return found


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
    from hivemesh.daemon import Daemon, notify
    from hivemesh.kernel.cores import keep_out_of_cores

    keep_out_of_cores()
    supervisor = notify.supervisor()

    async def serve() -> None:
        ready = asyncio.Event()
        running = asyncio.create_task(Daemon(config, SystemClock()).run(ready))
        telling = asyncio.create_task(notify.tell(supervisor, ready))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    uvloop.run(serve())
