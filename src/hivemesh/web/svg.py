"""The picture as SVG: a file that needs nothing else, light or dark as its reader likes; and what the page shows. Pure.

Each item and each line is one element with its id, in layers from below to above; what stands where, and how it looks,
is said here only. The page takes over the elements as they are and keeps those that stay.
"""

import re
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files

from hivemesh.wire.topology import Item, Link, Picture

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
RADIUS = {"machine": 12.0, "service": 9.0, "outside": 20.0, "lane": 2.0, "stop": 3.5, "device": 5.0}
BOXES = ("service", "outside", "sandbox", "ingress", "overlay", "host")
BEHIND = ("vip", "publish")
"""Lines that pass behind boxes."""
CURVED = ("vip", "publish", "veth", "way out")


def svg(picture: Picture) -> str:
    """A whole document. Lines that are drawn only for who asks are left out."""
    width, height = picture.width, picture.height
    summary = f"{picture.swarm}: " + ", ".join(f"{number} {what}" for what, number in picture.summary)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img">',
            f"<title>{escape(summary)}</title>",
            f"<style>{_style()}</style>",
            f'<rect class="sheet" width="{width:g}" height="{height:g}"/>',
            layers(picture, shy=False),
            "</svg>\n",
        ]
    )


def layers(picture: Picture, *, shy: bool = True) -> str:
    """The elements, without what is around them. With `shy` they are for the page, which tells of facts by itself."""
    boxes = {item.id: item for item in picture.items}
    links = [link for link in picture.links if shy or not link.shy]
    parts: tuple[tuple[str, Iterator[str]], ...] = (
        ("ground", (_item(item, brief=shy) for item in picture.items if item.kind in ("machine", "lane"))),
        ("behind", (_link(link, boxes) for link in links if link.kind in BEHIND)),
        ("boxes", (_item(item, brief=shy) for item in picture.items if item.kind in BOXES)),
        ("before", (_link(link, boxes) for link in links if link.kind not in BEHIND)),
        ("small", (_item(item, brief=shy) for item in picture.items if item.kind in ("device", "stop"))),
    )
    return "\n".join(f'<g data-layer="{name}">\n' + "\n".join(elements) + "\n</g>" for name, elements in parts)


def _item(item: Item, *, brief: bool) -> str:
    hue = f" hue-{item.hue}" if item.hue >= 0 else ""
    w, h = item.w, item.h
    radius = RADIUS.get(item.kind, 6.0)
    return (
        f'<g id="{escape(item.id)}" class="item {item.kind} {item.state}{hue}" '
        f'transform="translate({item.x:g} {item.y:g})"><title>{escape(item.title if brief else _about(item))}</title>'
        f'<rect class="body" width="{w:g}" height="{h:g}" rx="{radius:g}"/>{"".join(_inside(item))}</g>'
    )


def _about(item: Item) -> str:
    return "\n".join([item.title, *(f"{key}: {value}" for key, value in item.facts)])


def _inside(item: Item) -> Iterator[str]:
    """What stands in the box, from its upper left corner."""
    w, h = item.w, item.h
    match item.kind:
        case "machine":
            yield '<circle class="lamp" cx="19" cy="19" r="5"/>'
            yield _text("title", 32, 24, item.title, "start")
            yield _text("note", 32, 39, item.note, "start")
            yield f'<text class="health" x="{w - 14:g}" y="24" text-anchor="end"></text>'
            yield f'<text class="health" x="{w - 14:g}" y="39" text-anchor="end"></text>'
        case "service":
            yield f'<rect class="mark" x="0" y="9" width="4" height="{h - 18:g}" rx="2"/>'
            yield _text("title", w / 2, h / 2 - 3, item.title)
            yield _text("note", w / 2, h / 2 + 13, item.note)
        case "outside":
            yield _text("title", w / 2, h / 2 - 2, item.title)
            yield _text("note", w / 2, h / 2 + 12, item.note)
        case "lane":
            yield _text("note", -10, h / 2 + 4, item.title, "end")
        case "device":
            yield _text("title", w / 2, h / 2 + 3.5, item.title)
        case "overlay" | "host" if h > 30:
            yield _text("title", 9, 16, item.title, "start")
        case "sandbox" | "ingress" | "overlay" | "host":
            yield _text("title", w / 2, 16 if h > 30 else h / 2 + 4, item.title)


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""


def _link(link: Link, boxes: Mapping[str, Item]) -> str:
    source, target = boxes.get(link.source), boxes.get(link.target)
    if source is None or target is None:
        return ""
    hue = f" hue-{link.hue}" if link.hue >= 0 else ""
    shy = " shy" if link.shy else ""
    x1, y1, x2, y2 = _ends(source, target)
    bend = abs(y2 - y1) / 2 if link.kind in CURVED else 0.0
    path = f"M{x1:g},{y1:g} "
    path += f"C{x1:g},{y1 + bend:g} {x2:g},{y2 - bend:g} {x2:g},{y2:g}" if bend else f"L{x2:g},{y2:g}"
    about = "\n".join(f"{key}: {value}" for key, value in link.facts) or link.title or link.kind
    kind = link.kind.replace(" ", "-")
    return (
        f'<path id="{escape(link.id)}" class="link {kind} {link.state}{hue}{shy}" d="{path}">'
        f"<title>{escape(about)}</title></path>"
    )


def _ends(source: Item, target: Item) -> tuple[float, float, float, float]:
    """From the lower edge of the upper one to the upper edge of the lower one."""
    x1, x2 = source.x + source.w / 2, target.x + target.w / 2
    if source.y + source.h <= target.y:
        return x1, source.y + source.h, x2, target.y
    return x1, source.y + source.h / 2, x2, target.y + target.h / 2


# --- how it looks -----------------------------------------------------------------------------------------------------


def picture_css() -> str:
    """For the page, whose colours can change: the rules with the palette's variables."""
    return _rules({name: f"var(--{name})" for name in palettes()[0]}) + "\n"


def palettes() -> tuple[dict[str, str], dict[str, str]]:
    """The colours by name, light and dark, from the one file that has them."""
    text = (files("hivemesh.web") / "static" / "palette.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", text)
    return {name: light for name, light, _ in found}, {name: dark for name, _, dark in found}


def _style() -> str:
    """Plain colours: readers of SVG that are no browsers know no variables."""
    light, dark = palettes()
    return f"{_rules(light)}\n@media (prefers-color-scheme: dark) {{\n{_rules(dark)}\n}}"


def _rules(c: Mapping[str, str]) -> str:
    hues = [name for name in c if name.startswith("hue-")]
    framed = ("overlay", "device", "service", "sandbox")
    return "\n".join(
        [
            f"text {{ font: 11px {FONT}; fill: {c['text']} }}",
            f".note {{ fill: {c['quiet']} }}",
            f".health {{ fill: {c['quiet']}; font-size: 11px }}",
            f".sheet {{ fill: {c['sheet']} }}",
            f".body {{ fill: {c['box']}; stroke: {c['box-edge']} }}",
            f".machine > .body, .service > .body, .outside > .body {{ fill: {c['machine']}; "
            f"stroke: {c['machine-edge']} }}",
            ".machine > .title { font-size: 15px; font-weight: 600 }",
            ".service > .title, .outside > .title { font-size: 13px; font-weight: 600 }",
            ".sandbox > .title, .overlay > .title { font-weight: 500 }",
            f".device > .body {{ fill: {c['device']}; stroke: {c['device-edge']} }}",
            ".device > text { font-size: 10px }",
            f".lane > .body, .stop > .body {{ fill: {c['line']}; stroke: none }}",
            f".link {{ fill: none; stroke: {c['line']}; stroke-width: 1.4 }}",
            ".vip, .publish { stroke-opacity: .5 }",
            ".way-out { stroke-dasharray: 3 3 }",
            ".lane.link { stroke-width: 4; stroke-opacity: .9 }",
            *(f".link.{h} {{ stroke: {c[h]} }}" for h in hues),
            *(", ".join(f".{kind}.{h} > .body" for kind in framed) + f" {{ stroke: {c[h]} }}" for h in hues),
            *(f".lane.{h} > .body, .stop.{h} > .body, .{h} > .mark {{ fill: {c[h]}; stroke: none }}" for h in hues),
            f".lamp {{ fill: {c['good']} }}",
            *(f".{state} > .lamp {{ fill: {c[state]} }}" for state in ("busy", "warn", "bad", "idle")),
            ".busy > .body, .link.busy { stroke-dasharray: 4 3 }",
            ".idle > .body, .idle > text { opacity: .55 }",
            f".warn > .body {{ stroke: {c['warn']}; stroke-width: 2 }}",
            f".bad > .body, .link.bad {{ stroke: {c['bad']}; stroke-width: 2 }}",
            f".bad > .note, .bad.sandbox > .title {{ fill: {c['bad']} }}",
        ]
    )
