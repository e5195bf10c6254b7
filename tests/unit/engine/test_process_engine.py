"""The engine of plain processes, where no container is needed to see it."""

from pathlib import Path

import pytest

from hivemesh.engine.process import ProcessEngine


@pytest.mark.parametrize("left", ["container.new", "log", ""])
async def test_what_an_interrupted_creation_or_removal_left_is_swept(tmp_path: Path, left: str) -> None:
    (tmp_path / "c0ffee").mkdir()
    if left:
        (tmp_path / "c0ffee" / left).touch()
    engine = ProcessEngine(tmp_path)
    assert await engine.list() == []
    assert list(tmp_path.iterdir()) == []
    await engine.close()
