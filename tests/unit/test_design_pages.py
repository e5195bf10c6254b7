"""The design's index and its pages agree."""

import re
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs" / "design"


def test_every_design_page_is_in_the_index_and_the_index_names_no_other() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (PAGES / "README.md").read_text()))
    assert linked == {page.name for page in PAGES.glob("*.md")} - {"README.md"}
