"""Every endpoint of the API, asked over HTTP; and what it says to requests that no command line would have sent."""

import pytest
from conform_endpoints import ENDPOINTS, REFUSALS
from conform_rig import Board, Row, check, names

from hivemesh.api.operations import OPERATIONS

pytestmark = pytest.mark.scenario


@pytest.mark.parametrize("row", ENDPOINTS, ids=names(ENDPOINTS))
def test_endpoint_answers_or_refuses_in_words(board: Board, row: Row) -> None:
    check(board, row)


@pytest.mark.parametrize("row", REFUSALS, ids=[row.group for row in REFUSALS])
def test_bad_request_is_refused_by_name(board: Board, row: Row) -> None:
    check(board, row)


def test_every_endpoint_that_is_described_is_asked() -> None:
    asked = {row.template for row in ENDPOINTS}
    assert {f"{operation.method} {operation.path}" for operation in OPERATIONS} - asked == set()
