"""write_whole: a file appears whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastdiff._files import write_whole


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
