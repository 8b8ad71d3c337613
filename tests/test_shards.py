"""Shards give the npz that numpy would write, or one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastdiff.shards import Shards

SETTINGS = {"seed": 3, "eta": 0.0}
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), np.uint8)
LABELS = np.arange(11)


def begun(folder: Path, batch_size: int = 4, **settings: object) -> tuple[Shards, list[int]]:
    shards = Shards(folder / "all.npz", len(IMAGES), batch_size, {**SETTINGS, **settings})
    return shards, shards.begin()


def write(shards: Shards, batches: list[int]) -> None:
    for batch in batches:
        shards.write(batch, IMAGES[shards.indices(batch)])


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
@pytest.mark.parametrize("more", [(), (LABELS,)])
def test_the_joined_file_is_numpys_own(tmp_path: Path, batch_size: int, more: tuple) -> None:
    shards, batches = begun(tmp_path, batch_size)
    write(shards, batches)
    shards.join(tmp_path / "all.npz", *more)
    np.savez(tmp_path / "numpys.npz", IMAGES, *more)
    assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "numpys.npz").read_bytes()
    shards.remove()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.npz", "numpys.npz"]


def test_a_second_run_takes_up_what_is_there(tmp_path: Path) -> None:
    shards, batches = begun(tmp_path)
    assert batches == [0, 1, 2]
    write(shards, [2])
    again, left = begun(tmp_path)
    assert left == [0, 1]
    assert again.num_images() == 3


def test_what_a_cut_off_write_left_goes(tmp_path: Path) -> None:
    shards, _ = begun(tmp_path)
    (shards.folder / ".000001.abcd.npy").write_bytes(b"half")
    _, left = begun(tmp_path)
    assert left == [0, 1, 2]
    assert [file.name for file in shards.folder.iterdir()] == ["settings.json"]


def test_the_first_images_span_batches(tmp_path: Path) -> None:
    shards, batches = begun(tmp_path)
    write(shards, batches)
    np.testing.assert_array_equal(shards.first_images(6), IMAGES[:6])
    np.testing.assert_array_equal(shards.first_images(99), IMAGES)


def test_other_settings_are_named(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(seed 3, not 4, batch_size 4, not 5\)"):
        begun(tmp_path, 5, seed=4)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "all.npz.parts" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(ValueError, match="is no unfinished run"):
        begun(tmp_path)
    assert mine.exists()


def test_a_removal_that_was_cut_off_can_be_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, **_: object) -> None:
        assert [file.name for file in folder.iterdir()] == ["settings.json"]
        raise KeyboardInterrupt

    shards, batches = begun(tmp_path)
    write(shards, batches)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.rmtree", interrupted)
        shards.remove()
    assert begun(tmp_path)[1] == batches


@pytest.mark.parametrize("name", ["000001.npy", "settings.json"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    shards, batches = begun(tmp_path)
    write(shards, batches)
    damaged = shards.folder / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        begun(tmp_path)
        shards.join(tmp_path / "all.npz")
    assert not (tmp_path / "all.npz").exists()
