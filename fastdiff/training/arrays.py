"""Images as arrays in a file: idx, as MNIST comes in, and npz."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff.training.data import check_bytes

File = gzip.GzipFile | io.BufferedReader
Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any] | None, None]


def read_idx_pair(images_file: Path) -> Arrays:
    """Images [N, H, W] and the labels [N] of the file beside, if there is one."""
    images = _read_idx(images_file, dimensions=3)
    labels_file = images_file.with_name(
        images_file.name.replace("images", "labels").replace("idx3", "idx1")
    )
    labels = _read_idx(labels_file, dimensions=1) if labels_file.exists() else None
    return images, labels, None


def read_npz(path: Path) -> Arrays:
    """The arrays "images" and "labels", or those of samples: arr_0, and arr_1 for labels."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = ("images", "labels") if "images" in arrays else ("arr_0", "arr_1")
            return arrays[images], arrays[labels] if labels in arrays else None, None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path.name} is no npz with an array 'images' or 'arr_0': {error}"
        ) from error


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _idx_array(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _idx_array(file: File, path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path.name} is no idx file of unsigned bytes in {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(header[4:], ">u4"))
    check_bytes(shape, path)
    array = np.empty(shape, np.uint8)
    held = _fill(file, array.data.cast("B")) if array.size else 0
    if held < array.size or file.read(1):
        told = f"holds {held}; it is cut short" if held < array.size else "holds more"
        raise ValueError(f"{path.name} promises {shape} bytes and {told}")
    return array


def _fill(file: File, memory: memoryview) -> int:
    done = 0
    while done < len(memory) and (count := file.readinto(memory[done:])):
        done += count
    return done
