"""What `hivemesh daemon` is told of its node; a slip is refused before anything is started."""

import pytest
from click.testing import CliRunner

from hivemesh.cli.daemon import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("GPU",), "invalid generic resource 'GPU': write NAME=COUNT or NAME=VALUE"),
        (("GPU=a", "GPU=2"), "GPU: give one count, or names only"),
        (("SSD=-1",), "the count is out of range"),
    ],
)
def test_generic_resources_that_cannot_be_are_refused(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(main, [f"--node-generic-resource={text}" for text in arguments])
    assert result.exit_code == 2
    assert words in result.output
