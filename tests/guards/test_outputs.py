"""What is written appears whole or not at all, and takes the place of nothing that it may not replace."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import OutputError
from edgeattn.guards.outputs import user_cache, whole_directory, write_atomically


def write_whole(path: Path, overwrite: bool) -> None:
    """A directory with a new file, while another run writes an old one to the same place."""
    with whole_directory(path, overwrite) as directory:
        (directory / "new").write_text("of this run")
        assert not path.exists()
        path.mkdir()
        (path / "old").write_text("of another run, meanwhile")


def test_a_whole_directory_replaces_what_came_meanwhile_only_where_it_may(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"kept: cannot be written: Directory not empty"):
        write_whole(tmp_path / "kept", overwrite=False)
    write_whole(tmp_path / "replaced", overwrite=True)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "kept/old", "replaced/new",
    }  # fmt: skip


def test_nothing_is_left_of_a_directory_that_could_not_be_filled(tmp_path: Path) -> None:
    def fill() -> None:
        with whole_directory(tmp_path / "out", overwrite=False) as directory:
            (directory / "half").write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="out: cannot be written: the disk is full"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "input/output error")])
def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def breaks(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", breaks)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("/cache", "/cache/edgeattn"), ("cache", "/home/me/.cache/edgeattn"), ("", "/home/me/.cache/edgeattn")],
)
def test_the_cache_lies_where_the_desktop_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", "/home/me")
    assert user_cache() == Path(expected)
