"""The docker command, unmodified, against a lab: each line does what it says, or is refused in words."""

import pytest
from conform_commands import COMMANDS
from conform_rig import Board, Row, check, names

pytestmark = pytest.mark.scenario


@pytest.mark.parametrize("row", COMMANDS, ids=names(COMMANDS))
def test_command_has_its_effect_or_is_refused_in_words(board: Board, row: Row) -> None:
    check(board, row)
