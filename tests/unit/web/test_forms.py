"""The picture as SVG, for Graphviz, and in words."""

import re
from xml.etree import ElementTree

from world import spec

from hivemesh.web.dot import dot
from hivemesh.web.outline import outline
from hivemesh.web.svg import layers, palettes, picture_css, svg
from sights import Swarm, a_swarm, picture_of, sights

SVG = "{http://www.w3.org/2000/svg}"


def test_svg_has_an_element_for_each_item_and_line_that_is_not_shy() -> None:
    picture = picture_of(a_swarm())
    found = {element.get("id") for element in ElementTree.fromstring(svg(picture)).iter()}
    assert {item.id for item in picture.items if item.kind != "joint"} <= found
    assert {link.id for link in picture.links} <= found


def test_svg_needs_nothing_from_elsewhere_and_knows_no_variables() -> None:
    text = svg(picture_of(a_swarm()))
    assert re.findall(r"https?://[^\"']+", text) == ["http://www.w3.org/2000/svg"]
    assert "var(" not in text
    assert "script" not in text


def test_names_are_text_and_never_markup() -> None:
    world = Swarm(1)
    world.set_node("n1", message="<script>alert(1)</script> & more", state="down")
    picture = picture_of(world)
    for text in (svg(picture), f'<svg xmlns="http://www.w3.org/2000/svg">{layers(picture)}</svg>'):
        ElementTree.fromstring(text)
        assert "<script>" not in text


def test_page_gets_shy_lines_too_and_rules_with_variables() -> None:
    world = Swarm(2)
    world.create(spec("web", 50))
    for _ in range(4):
        world.agents()
    picture = picture_of(world, sights(world.view))
    assert layers(picture).count("link vip") == 50
    assert svg(picture).count('class="link vip') == 0
    light, dark = palettes()
    assert light.keys() == dark.keys()
    for name in re.findall(r"var\(--([\w-]+)\)", picture_css()):
        assert name in light


def test_dot_nests_boxes_and_joins_machines_by_networks() -> None:
    text = dot(picture_of(a_swarm()))
    assert text.startswith('digraph "default" {')
    assert text.count("{") == text.count("}")
    assert "subgraph" in text
    assert '"lane/' in text
    assert 'class="vip"' in text


def test_outline_tells_of_nodes_tasks_and_what_is_broken() -> None:
    world = a_swarm()
    world.set_node("n2", state="down", message="heartbeat failure")
    lines = outline(picture_of(world)).splitlines()
    assert lines[0] == "default: 2/3 nodes, 2 services, 3/5 tasks, 2 networks"
    assert any(line.startswith("node n2 (broken)  worker") for line in lines)
    assert "  web.1  [eth0 eth1 eth2]" in lines
