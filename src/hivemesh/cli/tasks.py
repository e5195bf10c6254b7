"""Tables of tasks, for `service ps` and `node ps`."""

from collections.abc import Mapping
from typing import Any

import click

from hivemesh.cli import output
from hivemesh.client import Client

COLUMNS = {
    "ID": "ID",
    "Name": "NAME",
    "Image": "IMAGE",
    "Node": "NODE",
    "DesiredState": "DESIRED STATE",
    "CurrentState": "CURRENT STATE",
    "Error": "ERROR",
    "Ports": "PORTS",
}

whole_option = click.option("--no-trunc", "whole", is_flag=True, help="Show whole IDs.")


async def show(client: Client, query: Mapping[str, str], whole: bool, quiet: bool, form: str) -> None:
    """The tasks a query finds: slot by slot, the newest first and what it replaced below it."""
    found = await client.get("/tasks", query)
    if quiet:
        output.ids(task["ID"] for task in found)
        return
    names = {service["ID"]: service["Spec"]["Name"] for service in await client.get("/services")}
    nodes = {node["ID"]: node["Description"]["Hostname"] for node in await client.get("/nodes")}
    found.sort(key=lambda task: task["CreatedAt"], reverse=True)
    found.sort(key=lambda task: (names.get(task["ServiceID"], ""), task["Slot"]))
    rows, before = [], ""
    for task in found:
        name = f"{names.get(task['ServiceID'], task['ServiceID'])}.{task['Slot']}"
        shown = name if form == "json" or name != before else f" \\_ {name}"
        rows.append(_row(task, shown, nodes, form, whole=whole or form == "json"))
        before = name
    output.rows(COLUMNS, rows, form)


def _row(task: Mapping[str, Any], name: str, nodes: Mapping[str, str], form: str, *, whole: bool) -> dict[str, Any]:
    status = task["Status"]
    ports = (status.get("PortStatus") or {}).get("Ports") or []
    error = status.get("Err", "")
    return {
        "ID": task["ID"] if whole else task["ID"][:12],
        "Name": name,
        "Image": task["Spec"]["ContainerSpec"]["Image"],
        "Node": nodes.get(task.get("NodeID", ""), ""),
        "DesiredState": task["DesiredState"].title(),
        "CurrentState": f"{status['State'].title()} {output.ago(status['Timestamp'])}".strip(),
        "Error": f'"{error}"' if error and form != "json" else error,
        "Ports": ", ".join(f"*:{port['PublishedPort']}->{port['TargetPort']}/{port['Protocol']}" for port in ports),
    }
