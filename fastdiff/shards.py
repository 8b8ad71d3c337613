"""Many images on their way into one npz: a file for each batch, kept until all are there."""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff._files import write_whole
from fastdiff.images import Pixels

SETTINGS = "settings.json"


class Shards:
    """The batches of a run of `count` images, in the folder `<target>.parts` beside its target.

    Batch k holds images k * batch_size up to (k + 1) * batch_size - 1; its file is whole or not
    there. Several processes may write different batches.
    """

    def __init__(
        self, target: Path, count: int, batch_size: int, settings: Mapping[str, Any]
    ) -> None:
        self.folder = target.with_name(f"{target.name}.parts")
        self.count, self.batch_size = count, batch_size
        self.settings = {**settings, "num": count, "batch_size": batch_size}

    def check(self) -> None:
        """Raise ValueError where the folder is there, but of a run of other settings or of none."""
        path = self.folder / SETTINGS
        if path.exists():
            self._check_same(_read(path))
        elif any(self.folder.glob("[!.]*")):
            raise ValueError(f"{self.folder} is no unfinished run: name another file.")

    def begin(self) -> list[int]:
        """Make the folder, or take up what a run of the same settings left; the batches to draw.

        Raises ValueError as `check` does.
        """
        self.check()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / SETTINGS
        if not path.exists():
            with write_whole(path) as unfinished:
                unfinished.write_text(json.dumps(self.settings, indent=2) + "\n")
        for leftover in self.folder.glob(".*"):  # of a write that was cut off
            leftover.unlink()
        return [batch for batch in self._batches() if not self._path(batch).exists()]

    def indices(self, batch: int) -> range:
        """The images of a batch."""
        first = batch * self.batch_size
        return range(first, min(first + self.batch_size, self.count))

    def write(self, batch: int, pixels: Pixels) -> None:
        """Keep the images [N, H, W, C] of a batch."""
        with write_whole(self._path(batch)) as unfinished:
            np.save(unfinished, pixels)

    def num_images(self) -> int:
        """How many images are there."""
        there = (batch for batch in self._batches() if self._path(batch).exists())
        return sum(len(self.indices(batch)) for batch in there)

    def first_images(self, count: int) -> Pixels:
        """The first `count` images, or all if there are fewer, [N, H, W, C]."""
        batches = range(math.ceil(min(count, self.count) / self.batch_size))
        return np.concatenate([self._load(batch) for batch in batches])[:count]

    def join(self, target: Path, *more: NDArray[Any]) -> None:
        """Write all images as arr_0 of an npz, and `more` as arr_1 and so on.

        The file is that which numpy.savez would write, with one batch in memory at a time.
        """
        unfinished = self.folder / f".{target.name}"
        shape = (self.count, *self._load(0).shape[1:])
        with zipfile.ZipFile(unfinished, "w") as archive:
            _add(archive, "arr_0", shape, np.dtype(np.uint8), map(self._load, self._batches()))
            for index, array in enumerate(more, 1):
                _add(archive, f"arr_{index}", array.shape, array.dtype, [array])
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)

    def remove(self) -> None:
        """Delete the folder and what it holds, last what tells whose it is."""
        for batch in self._batches():
            self._path(batch).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _batches(self) -> range:
        return range(math.ceil(self.count / self.batch_size))

    def _path(self, batch: int) -> Path:
        return self.folder / f"{batch:06d}.npy"

    def _load(self, batch: int) -> Pixels:
        path = self._path(batch)
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged; delete it and run the command again.") from error

    def _check_same(self, before: Mapping[str, Any]) -> None:
        settings = self.settings
        other = [name for name in settings if settings[name] != before.get(name)]
        if other:
            told = ", ".join(f"{name} {before.get(name)}, not {settings[name]}" for name in other)
            raise ValueError(
                f"{self.folder} holds an unfinished run of other settings ({told}): finish it with "
                "those, name another file, or delete the folder."
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged; delete its folder and begin anew.") from error


def _add(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    parts: Iterable[NDArray[Any]],
) -> None:
    """An array of an npz, written piece by piece along its first axis."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
