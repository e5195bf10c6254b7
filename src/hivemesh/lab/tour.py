"""`make lab`: three nodes, one published service, and a short tour that a newcomer can read."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import Machine
from hivemesh.model.errors import Conflict, HivemeshError

SERVICE, PORT, REPLICAS = "web_ingress_lb", 8090, 2
CREATE = (
    "service", "create", "--name", SERVICE, "--replicas", str(REPLICAS), "--publish", f"{PORT}:80", "localhost/whoami",
)  # fmt: skip
SERVING_TIMEOUT = 60.0
"""Seconds until every node must answer on the published port."""
SAMPLE = 20
"""Connections whose answers are counted."""

NEXT = """\
Try next (docker and hivemesh take the same words):

  eval "$(hivemesh lab env n1)"                         speak to n1 from this shell
  {program} node ls
  {program} service scale {service}=5
  {program} service ps {service}
  hivemesh lab client -- curl -s http://n3:{port}/
  hivemesh lab exec n2 -- ip netns                      the sandboxes, as the kernel has them
  hivemesh lab exec n2 -- ip netns exec ingress_sbox nft list table inet hivemesh
  hivemesh lab kill n2                                  the daemon dies, packets do not: curl again; then
  hivemesh lab restart n2

The lab keeps running. To stop it and remove every trace:  hivemesh lab down   (or make down)"""


def main() -> None:
    """Start (or find) the lab, publish the service, show it. Exit code 1 with one line when something is wrong."""
    try:
        tour()
    except HivemeshError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def tour() -> None:
    lab = Lab()
    if lab.is_up and not _is_whole(lab):
        click.echo("a lab that is not whole is in the way; starting anew …", err=True)
        lab.down()
    if not lab.is_up:
        lab = Lab(settings=LabSettings())
        lab.up(lambda step: click.echo(f"{step} …", err=True))
    if not lab.nodes[0].api("GET", "/info")["Swarm"].get("ControlAvailable"):
        raise Conflict("a lab without a swarm is up, and the tour needs one; `hivemesh lab down` first")
    program = "docker" if shutil.which("docker") else "hivemesh"
    publish(lab, program)
    click.echo("waiting until every node serves it …", err=True)
    await_service(lab)
    show(lab, program)


def publish(lab: Lab, program: str) -> None:
    first = lab.nodes[0]
    if any(service["Spec"]["Name"] == SERVICE for service in first.api("GET", "/services")):
        return
    click.echo(f"n1$ {program} {' '.join(CREATE)}", err=True)
    # The command of this environment, not what PATH has by that name.
    command = program if program == "docker" else os.path.join(os.path.dirname(sys.executable), program)
    first.exec(command, *CREATE[:2], "--quiet", "--detach", *CREATE[2:], timeout=SERVING_TIMEOUT)


def await_service(lab: Lab) -> None:
    """Until every node answers the client on the published port, in both families, by as many tasks as are shown.

    One answer is not enough: the second task may still be starting when the first one serves.
    """
    until = time.monotonic() + SERVING_TIMEOUT
    # Of the service, not its tasks: right after its creation these are still being made.
    (replicas,) = (
        service["Spec"]["Mode"]["Replicated"]["Replicas"]
        for service in lab.nodes[0].api("GET", "/services")
        if service["Spec"]["Name"] == SERVICE
    )
    shown = max(1, min(REPLICAS, replicas))
    for url in _urls(lab):
        while len({answer[0] for answer in _turns(lab.client, url) if answer}) < shown:
            if time.monotonic() > until:
                said = {
                    task["Status"].get("Err") or task["Status"]["State"] for task in lab.nodes[0].api("GET", "/tasks")
                }
                raise HivemeshError(f"{url} is not answered by {shown} tasks; they say: {'; '.join(sorted(said))}")
            time.sleep(0.1)


def show(lab: Lab, program: str) -> None:
    tasks = _tasks(lab)
    names = {node["ID"]: node["Description"]["Hostname"] for node in lab.nodes[0].api("GET", "/nodes")}
    owner = {
        address: f"{SERVICE}.{task['Slot']} on {names[task['NodeID']]}"
        for task in tasks
        for address in _addresses(task)
    }

    click.echo(
        f"\n{len(lab.nodes)} nodes form a swarm on this machine, each with its own network, containers and daemon:\n"
    )
    for index, machine in enumerate(lab.machines):
        what = "a host that is no node" if machine is lab.client else "manager" if index == 0 else "worker"
        click.echo(f"  {machine.name:<8} {machine.spec.v4.ip!s:<16} {machine.spec.v6.ip!s:<24} {what}")
    click.echo(f"\n{SERVICE} runs {len(tasks)} tasks behind port {PORT} of every node:\n")
    for task in sorted(tasks, key=lambda task: int(task["Slot"])):
        where = f"{SERVICE}.{task['Slot']} on {names[task['NodeID']]}"
        click.echo(f"  {where:<24} {task['Status']['State']:<10} {', '.join(_addresses(task))}")

    click.echo(
        "\nThe client host asks every node, also the one without a task; each task sees the client's own address:\n"
    )
    for url in _urls(lab):
        _show_answers(lab.client, url, owner)
    click.echo("\nA node asks itself:\n")
    for url in (f"http://127.0.0.1:{PORT}/", f"http://[::1]:{PORT}/"):
        _show_answers(lab.nodes[-1], url, owner)
    counted = Counter(_who(_ask(lab.client, _urls(lab)[0]), owner) for _ in range(SAMPLE))
    shares = ", ".join(f"{count} by {name}" for name, count in sorted(counted.items()))
    click.echo(f"\n{SAMPLE} connections from the client to n1 were answered: {shares}\n")
    click.echo(NEXT.format(program=program, service=SERVICE, port=PORT))


def _show_answers(asker: Machine, url: str, owner: dict[str, str]) -> None:
    answers = _turns(asker, url)
    seen = {line.partition(": ")[2].rpartition(":")[0] for a in answers for line in a if line.startswith("RemoteAddr")}
    click.echo(f"  {asker.name + '$ curl ' + url:<49}{' and '.join(sorted({_who(a, owner) for a in answers}))}")
    click.echo(f"  {'':<49}saw {' and '.join(sorted(seen)) or 'nobody'}")


def _is_whole(lab: Lab) -> bool:
    """Does everything run that `up` started?"""
    return all(machine.init_pid() for machine in lab.machines) and all(node.daemon() for node in lab.nodes)


def _urls(lab: Lab) -> list[str]:
    return [
        url
        for node in lab.nodes
        for url in (f"http://{node.spec.v4.ip}:{PORT}/", f"http://[{node.spec.v6.ip}]:{PORT}/")
    ]


def _ask(asker: Machine, url: str) -> list[str]:
    """The answer's lines; none when there was no answer."""
    return asker.exec("curl", "--silent", "--globoff", "--max-time", "3", url, check=False).stdout.splitlines()


def _turns(asker: Machine, url: str) -> list[list[str]]:
    """The answers of so many in a row that the balancer's turns show."""
    return [_ask(asker, url) for _ in range(REPLICAS)]


def _who(answer: Sequence[str], owner: dict[str, str]) -> str:
    addresses = [line.partition(": ")[2] for line in answer if line.startswith("IP: ")]
    return next((owner[address] for address in addresses if address in owner), "nobody known")


def _tasks(lab: Lab) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = lab.nodes[0].api("GET", "/tasks")
    return [task for task in tasks if task["DesiredState"] == "running"]


def _addresses(task: dict[str, Any]) -> list[str]:
    found = (address for attachment in task.get("NetworksAttachments") or () for address in attachment["Addresses"])
    return [address.partition("/")[0] for address in found]


if __name__ == "__main__":
    main()
