"""Pictures show the levels that the samples had."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from fastdiff.images import grid, save_gif, save_png, to_uint8


def test_every_grey_level_comes_back_from_its_place_in_minus_one_to_one():
    levels = torch.arange(256, dtype=torch.float64).div(127.5).sub(1).view(1, 1, 16, 16)
    assert to_uint8(levels).ravel().tolist() == list(range(256))


def test_values_outside_are_clamped():
    assert to_uint8(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_refused(value):
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 1, 1] = value
    with pytest.raises(ValueError, match="1 of 3 images are not finite"):
        to_uint8(images)
    assert to_uint8(torch.zeros(0, 1, 2, 2)).shape == (0, 2, 2, 1)


def test_the_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, 1).repeat(3, 2)
    picture = grid(images, columns=2, gap=1)
    assert picture.shape == (10, 9, 1)
    assert [int(picture[r, c, 0]) for r in (1, 4, 7) for c in (1, 5)] == [0, 1, 2, 3, 4, 255]
    assert (picture[0] == 255).all() and (picture[:, 0] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_picture(tmp_path, channels):
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, channels), dtype=np.uint8)
    save_png(tmp_path / "a.png", picture, scale=2)
    read = np.asarray(Image.open(tmp_path / "a.png")).reshape(14, 18, channels)
    np.testing.assert_array_equal(read[::2, ::2], picture)
    np.testing.assert_array_equal(read[1::2, 1::2], picture)


def test_gif_holds_every_frame(tmp_path):
    frames = [np.full((8, 8, 1), level, np.uint8) for level in (0, 100, 255)]
    save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as gif:
        levels = [np.asarray(frame.convert("L"))[0, 0] for frame in ImageSequence.Iterator(gif)]
    assert levels == [0, 100, 255]


def test_a_failed_write_leaves_the_old_picture_and_nothing_beside_it(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8))
    before = (tmp_path / "a.png").read_bytes()

    def interrupted(self, target, **_):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_png(tmp_path / "a.png", np.ones((4, 4, 1), np.uint8))
    assert (tmp_path / "a.png").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]
