"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxylessnas.utils.files import write_atomically


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    """And not the one beside it, which nobody asked for; that one is gone."""
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a.json", tmp_path / "folder"):
        with pytest.raises((FileNotFoundError, IsADirectoryError)) as caught:
            write_atomically(path, b"text")
        assert caught.value.filename == str(path)
        assert str(path) in str(caught.value)
        assert ".tmp" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("an older and longer text")
    write_atomically(path, b"new ", memoryview(b"text"))
    assert path.read_text() == "new text"
    assert list(tmp_path.iterdir()) == [path]
