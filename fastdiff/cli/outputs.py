"""The files that ``fastdiff sample`` writes, and whether a file can be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import click

from fastdiff.images import Pixels, grid, save_gif, save_png
from fastdiff.shards import Shards

if TYPE_CHECKING:
    from torch import Tensor

GRID_IMAGES = 1024
PIXELS_OF_AN_IMAGE = 64


@dataclass(frozen=True)
class Outputs:
    """Where the grid, all images and the animation go; None for what is not asked for."""

    png: Path | None
    npz: Path | None
    gif: Path | None

    @classmethod
    def checked(cls, out: Sequence[Path], gif: Path | None) -> Outputs:
        """Find out now, rather than after the work, that a file cannot be written."""
        by_ending = {path.suffix.lower(): path for path in out}
        for path in out:
            if path.suffix.lower() not in (".png", ".npz"):
                raise click.UsageError(f"{path}: its name must end in .png or .npz")
        if len(by_ending) < len(out):
            raise click.UsageError("--out takes one .png and one .npz at most")
        if gif is not None and gif.suffix.lower() != ".gif":
            raise click.UsageError(f"{gif}: its name must end in .gif")
        for path in (*out, *([] if gif is None else [gif])):
            check_writable(path)
        return cls(by_ending.get(".png"), by_ending.get(".npz"), gif)

    @property
    def main(self) -> Path:
        """The one that an unfinished run lies beside."""
        main = self.npz or self.png
        assert main is not None
        return main

    def write(self, shards: Shards, labels: Tensor | None, columns: int | None) -> None:
        """The grid of the first images, and the npz of all."""
        if self.png is not None:
            pixels = shards.first_images(GRID_IMAGES)
            save_png(self.png, grid(pixels, columns), _scale(pixels))
        if self.npz is not None:
            shards.join(self.npz, *([] if labels is None else [labels.numpy()]))

    def write_gif(self, frames: Sequence[Pixels], columns: int | None) -> None:
        """An animation of frames [N, H, W, C], the last one at rest."""
        if self.gif is not None:
            pictures = [grid(frame, columns) for frame in frames]
            save_gif(self.gif, pictures, _scale(frames[0]))


def _scale(pixels: Pixels) -> int:
    return max(1, PIXELS_OF_AN_IMAGE // pixels.shape[2])


def check_writable(path: Path) -> None:
    """UsageError for a file that cannot be written where it is named."""
    folder = path.parent
    if not folder.is_dir():
        raise click.UsageError(f"{path}: there is no folder {folder}; make it first")
    try:
        # Asked of the disk itself: permissions alone do not tell, least of all root's.
        with TemporaryFile(dir=folder):
            writable = not path.is_dir()
    except OSError:
        writable = False
    if not writable:
        raise click.UsageError(f"{path}: cannot be written here; name another place")
