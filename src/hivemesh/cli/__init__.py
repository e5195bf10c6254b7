"""The `hivemesh` command: one module per noun, each loaded only when it is used."""

import sys
from importlib import import_module

import click

import hivemesh
from hivemesh.model.errors import HivemeshError

COMMANDS = {
    "swarm": ("hivemesh.cli.swarm:swarm", "Enter, leave and configure a swarm"),
    "node": ("hivemesh.cli.node:node", "Machines of the swarm"),
    "service": ("hivemesh.cli.service:service", "Services: what the swarm runs"),
    "network": ("hivemesh.cli.network:network", "Networks that span the swarm"),
    "secret": ("hivemesh.cli.secret:secret", "Secrets: files that only some tasks may know"),
    "config": ("hivemesh.cli.config:config", "Configs: files for tasks"),
    "top": ("hivemesh.cli.top:top", "Show services, backends and their rates, live"),
    "flows": ("hivemesh.cli.flows:flows", "Show new connections as they begin"),
    "trace": ("hivemesh.cli.trace:trace", "Show the way of a packet, hop by hop"),
    "topology": ("hivemesh.cli.topology:topology", "Draw the swarm: nodes, networks, services and what joins them"),
    "doctor": ("hivemesh.cli.doctor:doctor", "Find what is wrong with this machine and its swarm"),
    "info": ("hivemesh.cli.system:info", "Show this machine and its place in a swarm"),
    "version": ("hivemesh.cli.system:version", "Show the versions of command and daemon"),
    "system": ("hivemesh.cli.system:system", "This machine: what it is, what fills its disk"),
    "events": ("hivemesh.cli.system:events", "Follow what changes, as it happens"),
    "daemon": ("hivemesh.cli.daemon:main", "Run the daemon (as hivemeshd does)"),
    "lab": ("hivemesh.cli.lab:lab", "Many nodes on this machine, for a try or a test"),
    "completion": ("hivemesh.cli.system:completion", "Print the completion script of a shell"),
}
"""Name to place and help text: `--help` lists them without loading any."""

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when somebody asks for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(hivemesh.__version__, "-v", "--version", message="hivemesh version %(version)s")
@click.option("-H", "--host", metavar="URL", help="The daemon's socket: unix:///path or tcp://address:port.")
@click.pass_context
def cli(ctx: click.Context, host: str | None) -> None:
    """Swarm mode for Linux machines, on Podman.

    The daemon is found at HIVEMESH_HOST, else DOCKER_HOST, else unix:///run/hivemesh/docker.sock.

    \b
    Examples:
      hivemesh swarm init --advertise-addr 192.0.2.10
      hivemesh service create --name web --replicas 2 --publish 8080:80 localhost/whoami
      hivemesh service ps web
    """
    ctx.obj = host


def main() -> None:
    """Run the command line; every failure is one line on standard error."""
    try:
        code = cli.main(prog_name="hivemesh", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "hivemesh"
        click.echo(f"Error: {error.format_message()} (see {path} --help)", err=True)
        code = USAGE
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        code = error.exit_code
    except HivemeshError as error:
        click.echo(f"Error: {error}", err=True)
        code = FAILURE
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has enough; say nothing at exit either
        code = FAILURE
    sys.exit(code if isinstance(code, int) else 0)
