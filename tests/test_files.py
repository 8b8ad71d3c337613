"""write_whole and write_whole_folder: what is written appears whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastdiff._files import write_whole, write_whole_folder


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with write_whole(path) as beside:
        assert beside.parent == tmp_path and beside.suffix == ".txt"
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_is_raised_leaves_the_old_file_alone(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(failure), write_whole(path) as beside:
        beside.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    def private(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    (tmp_path / "plain").write_text("")
    with write_whole(tmp_path / "whole") as beside:
        private(beside)
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_folder_shows_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_whole(tmp_path / "nowhere" / "a.txt"):
        pytest.fail("the block ran")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()  # empty, it may be taken
    with write_whole_folder(tmp_path / "new") as beside:
        (beside / "a.txt").write_text("new")
        assert not list((tmp_path / "new").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), write_whole_folder(tmp_path / "new") as beside:
        (beside / "a.txt").write_text("half")
        raise failure
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_takes_no_place_that_is_taken(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / "taken"
    if kind == "folder":
        taken.mkdir()
    (taken / "a.txt" if kind == "folder" else taken).write_text("old")
    with pytest.raises(FileExistsError, match="is there already"), write_whole_folder(taken):
        raise AssertionError("never reached")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
