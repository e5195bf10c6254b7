"""Where everything lies. Pure, and the same for the page, for SVG and for whoever reads the JSON.

    clients                          who uses published ports
    services                         a card each
    machines, in rows                sandboxes above, overlays and the machine's own namespace below
      ═══ lane per network ═══       a tunnel's end drops onto the lane of its network: a stop

A lane stands for all tunnels of a network between the machines: with fifty nodes, a line for each pair would be 1,225
lines, and the kernel counts what a tunnel device carries, not what each pair does. Nothing is placed at random or by
forces: what did not change stays where it is, relative to its neighbours.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from hivemesh.wire.topology import Item, Link, Picture

MARGIN = 24.0
PAD, GAP = 14.0, 10.0
MACHINE_HEAD, BOX_HEAD = 50.0, 22.0
HEAD_W = 340.0
"""Room for what a node says of itself, whatever that is: words that come and go must move nothing."""
HEALTH_W = 140.0
"""For a node's traffic and how far it is, at the right of its name."""
DEVICE_H, DEVICE_GAP = 20.0, 7.0
CHIP_H = 22.0
BETWEEN = 58.0
"""Between the sandboxes of a machine and its overlays: room for the veth pairs."""
RISE = 26.0
"""Between a bridge and the tunnel's end below it."""
LANE_GAP, LANE_H = 20.0, 4.0
MACHINE_GAP, ROW_GAP = 30.0, 52.0
SERVICE_W, SERVICE_H = 178.0, 46.0
OUTSIDE_W, OUTSIDE_H = 190.0, 40.0
SERVICES_TO_MACHINES, OUTSIDE_TO_SERVICES = 78.0, 46.0
ASPECT = 1.7
"""Width over height that rows of machines should come near to: a screen's, with room for a panel."""
SEVERAL = 0.25
"""What a second row costs, as the logarithm of a wrong aspect: lanes in one piece are easier to read."""
RAGGED = 0.3
"""What a last row costs of which almost nothing is filled, likewise."""
UNDERLAY = "underlay"
STOP = 7.0


def text_width(text: str, size: float = 11.0) -> float:
    """In a sans serif of that size, near enough."""
    return sum(0.34 if c in " .,:;il|'!·/[]()-" else 0.92 if c in "mwMW" else 0.6 for c in text) * size


@dataclass(slots=True)
class Box:
    x: float
    y: float
    w: float
    h: float


class _Sheet:
    """Items by what they lie in, and boxes as they are found."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.inside: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            self.inside[item.parent].append(item)
        self.boxes: dict[str, Box] = {}

    def move(self, item: Item, dx: float, dy: float) -> None:
        """With all that lies in it."""
        box = self.boxes[item.id]
        box.x, box.y = box.x + dx, box.y + dy
        for inner in self.inside[item.id]:
            self.move(inner, dx, dy)


def laid_out(
    swarm: str,
    items: Sequence[Item],
    links: Sequence[Link],
    lanes: Sequence[tuple[str, str, int]],
    summary: tuple[tuple[str, str], ...] = (),
    columns: int = 0,
) -> Picture:
    """`lanes` are the networks: id, title, hue. That of the machines' own network comes below all others. `columns`
    machines stand in a row; 0: as suits a screen.
    """
    sheet = _Sheet(items)
    machines = [item for item in sheet.inside[""] if item.kind == "machine"]
    services = [item for item in sheet.inside[""] if item.kind == "service"]
    outside = next((item for item in sheet.inside[""] if item.kind == "outside"), None)
    for machine in machines:
        _fill_machine(sheet, machine)
    used = {link.target.rpartition("/")[2] for link in links if link.kind == "tunnel"}
    tracks = [*(lane for lane in lanes if lane[0] in used), *((("", UNDERLAY, -1),) if "" in used else ())]
    gutter = max((text_width(title, 12) for _, title, _ in tracks), default=0.0) + 22
    columns = columns or _columns(sheet, machines, services, len(tracks))
    rows = [machines[start : start + columns] for start in range(0, len(machines), columns)]
    widest = max((_row_width(sheet, row) for row in rows), default=0.0)
    span = max(widest, _services_width(services, widest), OUTSIDE_W)
    left = MARGIN + gutter
    y = _place_top(sheet, outside, services, left, span)
    more: list[Item] = []
    lines: list[Link] = []
    for number, row in enumerate(rows):
        begin = left if len(rows) > 1 else left + (span - widest) / 2
        y = _place_row(sheet, row, begin, y)
        y = _place_lanes(sheet, row, tracks, number, (left, left + span), y, links, more, joined=len(rows) > 1)
        y += ROW_GAP
    if len(rows) > 1:
        lines = _trunks(tracks, len(rows))
    placed = [_placed(item, sheet.boxes.get(item.id)) for item in items]
    stops = {item.id for item in more}
    kept = [link for link in links if link.kind != "tunnel" or link.target in stops]
    right = left + span + (len(tracks) * 10 + 20 if len(rows) > 1 else 0)
    return Picture(
        swarm=swarm,
        width=right + MARGIN,
        height=max(y - ROW_GAP, 0.0) + MARGIN,
        items=(*placed, *more),
        links=(*kept, *lines),
        summary=summary,
        columns=columns,
    )


def _placed(item: Item, box: Box | None) -> Item:
    if box is None:
        return item
    return msgspec.structs.replace(item, x=round(box.x, 1), y=round(box.y, 1), w=round(box.w, 1), h=round(box.h, 1))


# --- inside a machine, from its upper left corner ---------------------------------------------------------------------


def _fill_machine(sheet: _Sheet, machine: Item) -> None:
    above = [item for item in sheet.inside[machine.id] if item.kind in ("sandbox", "ingress")]
    below = [item for item in sheet.inside[machine.id] if item.kind in ("overlay", "host")]
    whole = any(sheet.inside[item.id] for item in (*above, *below))
    for item in above:
        _fill_side_by_side(sheet, item, whole=whole)
    for item in below:
        _fill_stacked(sheet, item)
    head = max(text_width(machine.title, 15) + HEALTH_W + 32 + PAD, HEAD_W)
    columns = len(above) if whole else max(4, math.ceil(math.sqrt(len(above) * 1.4)))
    top = _grid(sheet, above, columns, even=not whole)
    bottom = _grid(sheet, below, len(below) or 1)
    width = max(head, top[0] + 2 * PAD, bottom[0] + 2 * PAD)
    for item in above:
        sheet.move(item, (width - top[0]) / 2, MACHINE_HEAD)
    lower = MACHINE_HEAD + top[1] + (BETWEEN if whole and above else GAP + 6 if above else 0.0)
    _spread(sheet, below, width, lower)
    sheet.boxes[machine.id] = Box(0, 0, width, lower + bottom[1] + PAD)


def _fill_side_by_side(sheet: _Sheet, item: Item, *, whole: bool) -> None:
    """A sandbox: its links stand in a row, towards what they are plugged into."""
    x = PAD / 2 + 1
    devices = sheet.inside[item.id]
    for device in devices:
        width = text_width(device.title, 10) + 14
        sheet.boxes[device.id] = Box(x, BOX_HEAD + 4, width, DEVICE_H)
        x += width + DEVICE_GAP
    title = text_width(item.title) + 24
    if not devices:
        sheet.boxes[item.id] = Box(0, 0, max(title, 66.0), CHIP_H if not whole else BOX_HEAD + DEVICE_H + 12)
        return
    width = max(title, x - DEVICE_GAP + PAD / 2 + 1)
    shift = (width - (x - DEVICE_GAP + PAD / 2 + 1)) / 2
    for device in devices:
        sheet.boxes[device.id].x += shift
    sheet.boxes[item.id] = Box(0, 0, width, BOX_HEAD + DEVICE_H + 12)


def _fill_stacked(sheet: _Sheet, item: Item) -> None:
    """An overlay: its bridge above, the tunnel's end below, where the lanes are."""
    devices = sheet.inside[item.id]
    title = text_width(item.title) + 24
    if not devices:
        sheet.boxes[item.id] = Box(0, 0, max(title, 56.0), CHIP_H + 2)
        return
    upper, lower = devices[:-1], devices[-1:]
    if len(devices) == 1:
        upper, lower = devices, []
    # The title stands left of the lines that come down to the bridge
    width = max(2 * text_width(item.title) + 26, *(text_width(d.title, 10) + 14 + PAD for d in devices))
    x = (width - sum(text_width(d.title, 10) + 14 for d in upper) - DEVICE_GAP * (len(upper) - 1)) / 2
    if x < PAD / 2:
        width, x = width + 2 * (PAD / 2 - x), PAD / 2
    for device in upper:
        own = text_width(device.title, 10) + 14
        sheet.boxes[device.id] = Box(x, BOX_HEAD + 4, own, DEVICE_H)
        x += own + DEVICE_GAP
    for device in lower:
        own = text_width(device.title, 10) + 14
        sheet.boxes[device.id] = Box((width - own) / 2, BOX_HEAD + 4 + DEVICE_H + RISE, own, DEVICE_H)
    sheet.boxes[item.id] = Box(0, 0, width, BOX_HEAD + 4 + 2 * DEVICE_H + RISE + 8)


def _grid(sheet: _Sheet, items: Sequence[Item], columns: int, *, even: bool = False) -> tuple[float, float]:
    """Side by side, in rows of so many; `even`: all as wide as the widest. Returns width and height."""
    if even and items:
        widest = max(sheet.boxes[item.id].w for item in items)
        for item in items:
            sheet.boxes[item.id].w = widest
    gap = GAP / 2 if even else GAP
    width = y = 0.0
    for start in range(0, len(items), columns):
        x = height = 0.0
        for item in items[start : start + columns]:
            sheet.move(item, x, y)
            x += sheet.boxes[item.id].w + gap
            height = max(height, sheet.boxes[item.id].h)
        width, y = max(width, x - gap), y + height + gap
    return width, max(y - gap, 0.0)


def _spread(sheet: _Sheet, items: Sequence[Item], width: float, y: float) -> None:
    """Over the whole width, with even gaps. The items begin side by side."""
    if not items:
        return
    spare = width - sum(sheet.boxes[item.id].w for item in items)
    gap = spare / (len(items) + 1)
    x = gap
    for item in items:
        box = sheet.boxes[item.id]
        sheet.move(item, x - box.x, y - box.y)
        x += box.w + gap


# --- all of it --------------------------------------------------------------------------------------------------------


def _row_width(sheet: _Sheet, row: Sequence[Item]) -> float:
    return sum(sheet.boxes[machine.id].w for machine in row) + MACHINE_GAP * max(len(row) - 1, 0)


def _services_width(services: Sequence[Item], most: float) -> float:
    whole = len(services) * (SERVICE_W + GAP) - GAP
    return min(whole, max(most, 4 * (SERVICE_W + GAP) - GAP)) if services else 0.0


def _columns(sheet: _Sheet, machines: Sequence[Item], services: Sequence[Item], tracks: int) -> int:
    """Machines in a row, so that the whole comes near to a screen's shape."""
    best, found = 1, math.inf
    for columns in range(1, len(machines) + 1):
        rows = [machines[start : start + columns] for start in range(0, len(machines), columns)]
        width = max(_row_width(sheet, row) for row in rows)
        per_row = max(1, int((max(width, SERVICE_W) + GAP) // (SERVICE_W + GAP)))
        height = sum(max(sheet.boxes[m.id].h for m in row) + tracks * LANE_GAP + ROW_GAP for row in rows)
        height += math.ceil(len(services) / per_row) * (SERVICE_H + GAP) + SERVICES_TO_MACHINES
        empty = columns * len(rows) - len(machines)
        miss = abs(math.log(width / height / ASPECT)) + (SEVERAL if len(rows) > 1 else 0.0) + RAGGED * empty / columns
        if miss < found:
            best, found = columns, miss
    return best


def _place_top(sheet: _Sheet, outside: Item | None, services: Sequence[Item], left: float, span: float) -> float:
    """Clients and services, centred. Returns where the machines begin."""
    y = MARGIN
    if outside is not None:
        sheet.boxes[outside.id] = Box(left + (span - OUTSIDE_W) / 2, y, OUTSIDE_W, OUTSIDE_H)
        y += OUTSIDE_H + OUTSIDE_TO_SERVICES
    if not services:
        return y
    gap = GAP + 14
    per_row = max(1, int((span + gap) // (SERVICE_W + gap)))
    for start in range(0, len(services), per_row):
        row = services[start : start + per_row]
        x = left + (span - len(row) * (SERVICE_W + gap) + gap) / 2
        for service in row:
            sheet.boxes[service.id] = Box(x, y, SERVICE_W, SERVICE_H)
            x += SERVICE_W + gap
        y += SERVICE_H + gap
    return y - gap + SERVICES_TO_MACHINES


def _place_row(sheet: _Sheet, row: Sequence[Item], x: float, y: float) -> float:
    """One row of machines, all as high as the highest; what is at their bottom stays there. Returns the row's end."""
    height = max(sheet.boxes[machine.id].h for machine in row)
    for machine in row:
        box = sheet.boxes[machine.id]
        for item in sheet.inside[machine.id]:
            if item.kind in ("overlay", "host"):
                sheet.move(item, 0, height - box.h)
        box.h = height
        sheet.move(machine, x, y)
        x += box.w + MACHINE_GAP
    return y + height


def _place_lanes(
    sheet: _Sheet,
    row: Sequence[Item],
    tracks: Sequence[tuple[str, str, int]],
    number: int,
    between: tuple[float, float],
    y: float,
    links: Iterable[Link],
    more: list[Item],
    *,
    joined: bool,
) -> float:
    """The lanes below one row of machines, and their stops. Returns where the lowest ends. Where there are several
    rows, lanes of one network are `joined` at their right ends."""
    here = {machine.id for machine in row}
    ends: Mapping[str, str] = {link.target: link.source for link in links if link.kind == "tunnel"}
    for count, (network, title, hue) in enumerate(tracks):
        middle = y + 30 + count * LANE_GAP
        right = between[1] + (14 + 10 * count if joined else 0)
        more.append(
            Item(id=f"lane/{number}/{network}", kind="lane", title=title, hue=hue, network=network, x=between[0] - 10,
                 y=middle - LANE_H / 2, w=round(right - between[0] + 10, 1), h=LANE_H,
                 facts=(("network", title), ("what", "the machines' own network" if not network else
                         "all tunnels of this network between the machines")))
        )  # fmt: skip
        more.append(
            Item(id=f"joint/{number}/{network}", kind="joint", hue=hue, network=network, x=right - 1, y=middle - 1,
                 w=2, h=2)
        )  # fmt: skip
        for machine in row:
            stop = f"stop/{machine.id}/{network}"
            source = ends.get(stop)
            if source is None or source not in sheet.boxes or machine.id not in here:
                continue
            box = sheet.boxes[source]
            more.append(
                Item(id=stop, kind="stop", hue=hue, network=network, node=machine.id,
                     x=round(box.x + box.w / 2 - STOP / 2, 1), y=round(middle - STOP / 2, 1), w=STOP, h=STOP)
            )  # fmt: skip
    return y + 30 + len(tracks) * LANE_GAP


def _trunks(tracks: Sequence[tuple[str, str, int]], rows: int) -> list[Link]:
    """What joins the rows' lanes of one network."""
    return [
        Link(id=f"trunk/{network}/{number}", kind="lane", source=f"joint/{number}/{network}",
             target=f"joint/{number + 1}/{network}", hue=hue, network=network)
        for network, _, hue in tracks
        for number in range(rows - 1)
    ]  # fmt: skip
