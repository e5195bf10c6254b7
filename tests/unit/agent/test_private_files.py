"""Files that are whole at any moment, and pile up nothing beside them."""

import threading
from pathlib import Path

import pytest

from hivemesh.agent.private import write_private


def test_a_file_is_replaced_whole_and_read_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    path.write_text("before")
    path.chmod(0o644)
    write_private(path, b"after")
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    path, left = tmp_path / "facts", tmp_path / ".facts.new"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.replace", interrupt)
        patched.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # nobody is there to tidy up
        with pytest.raises(KeyboardInterrupt):
            write_private(path, b"half")
    assert list(tmp_path.iterdir()) == [left]
    write_private(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_threads_write_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    texts = [bytes([65 + number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_private, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]
