"""The dashboard, the design page and the families speak of the same metrics."""

import json
import re
from pathlib import Path

from hivemesh.metrics.families import FAMILIES

DOCS = Path(__file__).parents[3] / "docs"
PROCESS = "hivemesh_process_"
SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def expressions() -> list[str]:
    dashboard = json.loads((DOCS / "grafana" / "hivemesh.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_dashboard_shows_every_metric_and_no_other() -> None:
    known = {family.name + end: family.name for family in FAMILIES for end in SAMPLES[family.kind]}
    used = {name for text in expressions() for name in re.findall(r"hivemesh_\w+", text)}
    assert {name for name in used if name not in known and not name.startswith(PROCESS)} == set()
    assert {known[name] for name in used if name in known} == {family.name for family in FAMILIES}


def test_dashboard_uses_labels_that_its_metrics_have() -> None:
    labels = {label for family in FAMILIES for label in family.labels} | {"instance", "job", "le"}
    used = {
        label.strip()
        for text in expressions()
        for group in re.findall(r"by \(([^)]*)\)", text)
        for label in group.split(",")
    }
    assert used <= labels


def test_design_page_names_every_metric_and_its_labels() -> None:
    page = (DOCS / "design" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(hivemesh_\w+)` \|[^|]*\|([^|]*)\|", page, re.M))
    assert rows.keys() == {family.name for family in FAMILIES}
    for family in FAMILIES:
        assert set(re.findall(r"`(\w+)`", rows[family.name])) >= set(family.labels), family.name
