"""The page of compatibility says what a lab answers. HIVEMESH_COMPAT=write (`make compat`) writes it anew."""

import os

import pytest
from conform_page import PAGE, page
from conform_rig import Board

pytestmark = pytest.mark.scenario


def test_page_of_compatibility_is_what_the_lab_answers(board: Board) -> None:
    found = page(board)
    if os.environ.get("HIVEMESH_COMPAT") == "write":
        PAGE.write_text(found)
    assert PAGE.read_text() == found, "docs/compatibility.md is out of date: run make compat, and look at what changed"
