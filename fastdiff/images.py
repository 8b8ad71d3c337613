"""Images as people see them: grey levels, grids, PNG and GIF files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastdiff._files import write_whole

Pixels = npt.NDArray[np.uint8]


def to_uint8(images: Tensor) -> Pixels:
    """Images ``[N, C, H, W]`` in [-1, 1] (clamped) as ``[N, H, W, C]`` in 0..255.

    Raises ValueError where one is not finite: it would be a black one.
    """
    images = images.detach()
    broken = len(images) - int(images.isfinite().flatten(1).all(1).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(images)} images are not finite numbers: the model overflows in its "
            "dtype, or its weights are broken; try float32"
        )
    levels = images.float().add(1).mul(127.5).round().clamp(0, 255)
    return levels.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def grid(pixels: Pixels, columns: int | None = None, gap: int = 2) -> Pixels:
    """One picture ``[H', W', C]`` of the images ``[N, H, W, C]``, row by row, white between."""
    count, height, width, channels = pixels.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    picture = np.full(shape, 255, np.uint8)
    for i, image in enumerate(pixels):
        top = gap + i // columns * (height + gap)
        left = gap + i % columns * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def save_png(path: str | Path, picture: Pixels, scale: int = 1) -> None:
    """Write ``[H, W, 1 or 3]`` as PNG, each pixel enlarged to ``scale`` x ``scale``."""
    from PIL import Image

    enlarged = picture.repeat(scale, 0).repeat(scale, 1)
    with write_whole(path) as unfinished:
        Image.fromarray(_grey_or_colour(enlarged)).save(unfinished, format="PNG")


def save_gif(path: str | Path, pictures: Sequence[Pixels], scale: int = 1) -> None:
    """Write pictures ``[H, W, 1 or 3]`` as a looping GIF that rests on the last one."""
    from PIL import Image

    frames = [
        Image.fromarray(_grey_or_colour(picture.repeat(scale, 0).repeat(scale, 1)))
        for picture in pictures
    ]
    durations = [60] * (len(frames) - 1) + [1500]
    with write_whole(path) as unfinished:
        frames[0].save(
            unfinished,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )


def _grey_or_colour(picture: Pixels) -> Pixels:
    return picture[..., 0] if picture.shape[-1] == 1 else picture
