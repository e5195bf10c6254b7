"""The picture as text for Graphviz: boxes in boxes are clusters. Pure."""

from collections import defaultdict

from hivemesh.wire.topology import Item, Picture

_ESCAPED = str.maketrans({'"': r"\"", "\\": r"\\", "\n": r"\n"})


def dot(picture: Picture) -> str:
    """For `dot`, which finds places of its own."""
    inside: dict[str, list[Item]] = defaultdict(list)
    for item in picture.items:
        inside[item.parent].append(item)
    lines = [f"digraph {_quoted(picture.swarm)} {{", "  rankdir=TB; compound=true; node [shape=box, style=rounded];"]
    for item in inside[""]:
        if item.kind not in ("stop", "joint", "lane"):
            _put(item, inside, lines, 1)
    lanes = {item.network: item for item in picture.items if item.kind == "lane"}
    lines += [f"  {_quoted(f'lane/{n}')} [label={_quoted(lane.title)}, shape=plaintext];" for n, lane in lanes.items()]
    kinds = {item.id: item for item in picture.items}
    for link in picture.links:
        if link.kind == "lane" or link.source not in kinds:
            continue
        target = f"lane/{link.network}" if link.kind == "tunnel" else _anchor(link.target, inside)
        label = f", label={_quoted(link.title)}" if link.title else ""
        source = _quoted(_anchor(link.source, inside))
        lines.append(f"  {source} -> {_quoted(target)} [dir=none, class={_quoted(link.kind)}{label}];")
    return "\n".join([*lines, "}", ""])


def _anchor(identifier: str, inside: dict[str, list[Item]]) -> str:
    """Lines end at nodes: a cluster's stand-in is the point in it."""
    return f"{identifier}/." if inside.get(identifier) else identifier


def _put(item: Item, inside: dict[str, list[Item]], lines: list[str], depth: int) -> None:
    indent = "  " * depth
    label = _quoted(f"{item.title}\n{item.note}" if item.note else item.title)
    if not inside.get(item.id):
        lines.append(f"{indent}{_quoted(item.id)} [label={label}];")
        return
    lines.append(f"{indent}subgraph {_quoted(f'cluster {item.id}')} {{ label={label};")
    lines.append(f"{indent}  {_quoted(f'{item.id}/.')} [shape=point, style=invis];")
    for inner in inside[item.id]:
        _put(inner, inside, lines, depth + 1)
    lines.append(f"{indent}}}")


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPED)}"'
