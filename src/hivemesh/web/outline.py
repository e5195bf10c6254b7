"""The picture in words: what is on it, indented, and what is wrong. Pure."""

from collections import defaultdict
from collections.abc import Iterator

from hivemesh.wire.topology import Item, Picture

SIGNS = {"good": "", "busy": " (on its way)", "warn": " (!)", "bad": " (broken)", "idle": " (idle)"}
SHOWN = ("service", "machine", "sandbox", "ingress", "overlay", "host", "device")


def outline(picture: Picture) -> str:
    """A line for each box, below the box it lies in; what is wrong stands behind it."""
    inside: dict[str, list[Item]] = defaultdict(list)
    for item in picture.items:
        if item.kind in SHOWN:
            inside[item.parent].append(item)
    counts = ", ".join(f"{number} {what}" for what, number in picture.summary)
    return "\n".join([f"{picture.swarm}: {counts}", *_lines(inside, "", 0), ""])


def _lines(inside: dict[str, list[Item]], parent: str, depth: int) -> Iterator[str]:
    for item in inside[parent]:
        about = f"  {item.note}" if item.note else ""
        problem = next((f": {text}" for key, text in item.facts if key == "problem"), "")
        devices = [inner for inner in inside[item.id] if inner.kind == "device"]
        held = f"  [{' '.join(d.title + SIGNS[d.state] for d in devices)}]" if devices else ""
        kind = {"ingress": "", "overlay": "network ", "machine": "node ", "service": "service "}.get(item.kind, "")
        yield f"{'  ' * depth}{kind}{item.title}{SIGNS[item.state]}{problem}{about}{held}"
        if len(devices) < len(inside[item.id]):
            yield from _lines(inside, item.id, depth + 1)
