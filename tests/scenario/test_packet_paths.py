"""Pages of packet paths are what traces in a lab print. HIVEMESH_PACKET_PATHS=write (`make packet-paths`) writes."""

import os
from collections.abc import Iterator

import pytest
from packet_paths import FOLDER, out_of_date, pages

from hivemesh.lab.lab import Lab, LabSettings

pytestmark = [pytest.mark.scenario, pytest.mark.soak]


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(f"t{os.getpid()}-paths", LabSettings(engine="process"))
    lab.up()
    try:
        yield lab
    finally:
        lab.down()


def test_pages_of_packet_paths_are_what_a_lab_prints(lab: Lab) -> None:
    found = pages(lab)
    if os.environ.get("HIVEMESH_PACKET_PATHS") == "write":
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, text in found.items():
            (FOLDER / f"{name}.md").write_text(text)
    assert not out_of_date(found), "run make packet-paths, and look at what changed"
    readme = (FOLDER / "README.md").read_text()
    assert all(f"({name}.md)" in readme for name in found), "README.md must lead to every page"
