"""`hivemesh lab`: many nodes on this machine."""

import json
import os
import signal
import sys

import click

from hivemesh.cli import output
from hivemesh.lab import faults
from hivemesh.lab.lab import Lab, LabSettings, labs
from hivemesh.lab.machine import Machine
from hivemesh.lab.node import PARTS, Node
from hivemesh.lab.topology import CLIENT, DEFAULT_NAME
from hivemesh.model.errors import NotFound

NAME_OPTION = click.option(
    "--name", default=DEFAULT_NAME, show_default=True, help="Which lab; several may run at once."
)
PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group("lab")
def lab() -> None:
    """Many nodes on this machine, each with its own network, containers and daemon; for a try or a test.

    \b
    Examples:
      hivemesh lab up
      eval "$(hivemesh lab env n1)" && docker node ls
      hivemesh lab client -- curl http://n2:8080/
      hivemesh lab down
    """


@lab.command()
@click.option("--nodes", default=3, show_default=True, help="How many machines.")
@click.option("--managers", default=1, show_default=True, help="How many of them manage the swarm.")
@click.option("--engine", type=click.Choice(["podman", "process"]), default="podman", show_default=True,
              help="What runs tasks: containers, or commands of this host inside the task's network.")  # fmt: skip
@click.option("--balancer", type=click.Choice(["nftables", "ipvs"]), default="nftables", show_default=True,
              help="What spreads connections over a service's tasks.")  # fmt: skip
@click.option("--no-swarm", is_flag=True, help="Leave the nodes running without forming a swarm.")
@click.option("--log-level", default="info", show_default=True, help="How much the daemons write.")
@NAME_OPTION
def up(nodes: int, managers: int, engine: str, balancer: str, no_swarm: bool, log_level: str, name: str) -> None:
    """Start a lab: nodes n1, n2, … on 198.51.100.11, .12, …, and a client host on .100.

    \b
    Examples:
      hivemesh lab up
      hivemesh lab up --nodes 5 --engine process
      hivemesh lab up --no-swarm && hivemesh lab exec n1 -- hivemesh swarm init
    """
    settings = LabSettings(
        nodes=nodes, managers=managers, engine=engine, balancer=balancer, swarm=not no_swarm, log_level=log_level
    )
    made = Lab(name, settings)
    made.up(lambda step: click.echo(f"{step} …", err=True))
    for machine in made.machines:
        click.echo(f"{machine.name:<8} {machine.spec.v4.ip!s:<16} {machine.spec.v6.ip}")
    option = "" if name == DEFAULT_NAME else f" --name {name}"
    click.echo(
        f'eval "$(hivemesh lab env n1{option})" points docker and hivemesh at n1; hivemesh lab down{option} ends it.'
    )


@lab.command()
@click.option("--all", "every", is_flag=True, help="Every lab of this machine.")
@NAME_OPTION
def down(every: bool, name: str) -> None:
    """Stop a lab and remove every trace of it. Safe to repeat, also after a crash.

    \b
    Examples:
      hivemesh lab down
      hivemesh lab down --all
    """
    for each in labs() if every else [name]:
        click.echo(f"lab {each} is gone" if Lab(each).down() else f"there is no lab {each}", err=True)


@lab.command("ls")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_labs(as_json: bool) -> None:
    """List the machines of all labs.

    \b
    Examples:
      hivemesh lab ls
      hivemesh lab ls --json
    """
    rows = [row for name in labs() for row in _rows(Lab(name))]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    columns = ("lab", "machine", "ipv4", "ipv6", "daemon", "docker_host")
    output.rows({key: key.upper() for key in columns}, rows, "table")


def _rows(each: Lab) -> list[dict[str, object]]:
    return [
        {
            "lab": each.name,
            "machine": machine.name,
            "ipv4": str(machine.spec.v4.ip),
            "ipv6": str(machine.spec.v6.ip),
            "on": machine.init_pid() is not None,
            "daemon": _daemon_state(machine),
            "docker_host": machine.docker_host if isinstance(machine, Node) else "",
            "netns": machine.spec.netns,
        }
        for machine in each.machines
    ]


def _daemon_state(machine: Machine) -> str:
    if not isinstance(machine, Node):
        return "-"
    return "running" if machine.daemon() else "stopped"


@lab.command("exec", context_settings=PASS_ON)
@click.argument("machine")
@click.argument("command", nargs=-1, required=True)
@NAME_OPTION
def execute(machine: str, command: tuple[str, ...], name: str) -> None:
    """Run a command on a node, as if logged in there.

    \b
    Examples:
      hivemesh lab exec n1 -- hivemesh node ls
      hivemesh lab exec n2 -- ip netns
      hivemesh lab exec n2 -- ip netns exec ingress_sbox nft list ruleset
    """
    _become(_machine(Lab(name), machine), command)


@lab.command(context_settings=PASS_ON)
@click.argument("command", nargs=-1, required=True)
@NAME_OPTION
def client(command: tuple[str, ...], name: str) -> None:
    """Run a command on the client host, which is on the underlay but is no node.

    \b
    Examples:
      hivemesh lab client -- curl http://n3:8080/
      hivemesh lab client -- ping n1
    """
    _become(Lab(name).client, command)


@lab.command()
@click.argument("node")
@NAME_OPTION
def env(node: str, name: str) -> None:
    """Print what points `docker` and `hivemesh` of this machine at a node.

    \b
    Examples:
      eval "$(hivemesh lab env n1)"
    """
    click.echo(f"export DOCKER_HOST={Lab(name).node(node).docker_host}")


@lab.command()
@click.argument("node")
@NAME_OPTION
def restart(node: str, name: str) -> None:
    """Restart a node's daemon (or start it after `kill`); tasks and packets carry on.

    \b
    Examples:
      hivemesh lab restart n2
    """
    Lab(name).restart_daemon(node)


@lab.command()
@click.argument("node")
@click.option("--part", type=click.Choice(sorted(PARTS)), default="daemon", show_default=True,
              help="Which of our programs there; the daemon starts the others again.")  # fmt: skip
@NAME_OPTION
def kill(node: str, part: str, name: str) -> None:
    """Kill a node's daemon with SIGKILL, as a crash would; tasks and packets carry on.

    \b
    Examples:
      hivemesh lab kill n2 && hivemesh lab client -- curl http://n2:8080/
      hivemesh lab restart n2
      hivemesh lab kill n2 --part resolver
    """
    if not Lab(name).node(node).kill_part(part):
        raise NotFound(f"no {PARTS[part]} runs on {node}; see `hivemesh lab exec {node} -- ps ax`")


@lab.command()
@click.argument("machines", nargs=-1, required=True)
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True,
              help="Lose TCP to and from this port only; 2377 and 12377 are the managers'.")  # fmt: skip
@NAME_OPTION
def cut(machines: tuple[str, ...], ports: tuple[int, ...], name: str) -> None:
    """Cut machines off from all others, until `mend`; among themselves they stay connected.

    \b
    Examples:
      hivemesh lab cut n3 && sleep 30; hivemesh lab mend
      hivemesh lab cut n2 n3 --port 2377 --port 12377
    """
    click.echo(faults.cut(Lab(name), machines, ports=ports))


@lab.command()
@click.argument("machine")
@click.option("--percent", type=click.IntRange(1, 100), default=5, show_default=True, help="How much is lost.")
@NAME_OPTION
def loss(machine: str, percent: int, name: str) -> None:
    """Lose frames to and from a machine at random, until `mend`.

    \b
    Examples:
      hivemesh lab loss n2 --percent 10
    """
    click.echo(faults.lose(Lab(name), machine, percent))


@lab.command()
@click.argument("machine")
@click.option("--ms", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How late, each way.")
@click.option("--jitter", type=click.IntRange(0, 10_000), default=0, show_default=True, help="More or less, in ms.")
@NAME_OPTION
def delay(machine: str, ms: int, jitter: int, name: str) -> None:
    """Let frames to and from a machine come late, in order, until `mend`.

    \b
    Examples:
      hivemesh lab delay n2 --ms 80 --jitter 20
    """
    click.echo(faults.delay(Lab(name), machine, ms, jitter))


@lab.command()
@click.argument("fault", default="")
@NAME_OPTION
def mend(fault: str, name: str) -> None:
    """Undo a cut, loss or delay, by the name it printed; without a name all of them.

    \b
    Examples:
      hivemesh lab mend
      hivemesh lab mend fault-0
    """
    faults.mend(Lab(name), fault)


@lab.command()
@click.argument("node")
@NAME_OPTION
def reboot(node: str, name: str) -> None:
    """Turn a node's machine off, at once, and on again: of its kernel and /run nothing remains, of its disk all.

    \b
    Examples:
      hivemesh lab reboot n2
    """
    Lab(name).reboot(node)


@lab.command()
@click.argument("node")
@NAME_OPTION
def logs(node: str, name: str) -> None:
    """Print what a node's daemon has written.

    \b
    Examples:
      hivemesh lab logs n1 | tail
    """
    log = Lab(name).node(node).log
    if not log.exists():
        raise NotFound(f"the daemon of {node} has not written anything")
    click.echo(log.read_text(errors="replace"), nl=False)


def _machine(of: Lab, name: str) -> Machine:
    return of.client if name == CLIENT else of.node(name)


def _become(machine: Machine, command: tuple[str, ...]) -> None:
    """Replace this process, so that the terminal, signals and the exit code are the command's own."""
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("say what to run after --")
    arguments = machine.command(words)
    sys.stdout.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvpe(arguments[0], arguments, {**os.environ, **machine.environment()})
