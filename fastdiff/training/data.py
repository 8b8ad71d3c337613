"""Training images from files, held in memory as uint8."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass(frozen=True)
class ImageData:
    """Images ``[N, C, H, W]`` uint8 and, where known, class labels ``[N]`` int64."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int | None:
        return None if self.labels is None else int(self.labels.max()) + 1

    def part(self, start: int, stop: int) -> ImageData:
        labels = None if self.labels is None else self.labels[start:stop]
        return ImageData(self.images[start:stop], labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images of ``index`` in [-1, 1] as float32, and their labels."""
        labels = None if self.labels is None else self.labels[index]
        return self.images[index].float().div_(127.5).sub_(1), labels


def load_images(path: str | Path) -> ImageData:
    """Read a data set.

    Args:
        path: an idx file of images (``*images*idx3*``, gzipped or not; the labels are
            the file of the same name with ``labels`` and ``idx1``), a folder that holds
            such a pair, an npz with ``images`` ``[N, H, W(, C)]`` uint8 and optionally
            ``labels`` ``[N]``, or a folder of pictures, a folder a class where there are
            folders.

    Raises:
        ValueError: when there is no such file, or it does not hold images.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file or folder of images: {path}")
    if path.is_dir():
        idx_files = sorted(path.glob("*images*idx3*"))
        return _load_idx(idx_files[0]) if idx_files else _load_pictures(path)
    if path.suffix == ".npz":
        return _load_npz(path)
    if "idx3" in path.name:
        return _load_idx(path)
    raise ValueError(f"{path.name} is no idx file, npz file or folder of pictures")


class ShuffledBatches:
    """The indices of each training step's batch, in shuffled epochs without end.

    The batch of a step depends on ``seed`` and the step's number alone, so that a resumed run
    goes on with the very batches that an unbroken one would see. The rest of an epoch that fills
    no batch is left out of it.

    Raises:
        ValueError: when the batch is larger than the data.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if not 0 < batch_size <= count:
            raise ValueError(f"batch size {batch_size} does not fit {count} training images")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Tensor:
        epoch, batch = divmod(step, self.count // self.batch_size)
        if epoch != self._epoch:
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            self._epoch, self._order = epoch, torch.from_numpy(shuffled)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]


def _load_idx(images_file: Path) -> ImageData:
    images = _read_idx(images_file, dimensions=3)
    labels_file = images_file.with_name(
        images_file.name.replace("images", "labels").replace("idx3", "idx1")
    )
    labels = _read_idx(labels_file, dimensions=1) if labels_file.exists() else None
    return _image_data(images[..., None], labels, images_file)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path.name} is no idx file of unsigned bytes in {dimensions} dimensions")
    shape = tuple(np.frombuffer(raw[4:header], ">u4").astype(int))
    if len(raw) - header != int(np.prod(shape)):
        raise ValueError(
            f"{path.name} promises {shape} bytes and holds {len(raw) - header}; it is cut short"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _load_npz(path: Path) -> ImageData:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays else None
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name} is no npz with an array 'images': {error}") from error
    return _image_data(images[..., None] if images.ndim == 3 else images, labels, path)


def _load_pictures(folder: Path) -> ImageData:
    from PIL import Image

    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES)
    if not files:
        raise ValueError(f"{folder} holds neither idx files nor pictures")
    modes = {"L", "RGB"}
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(
                np.asarray(picture if picture.mode in modes else picture.convert("RGB"))
            )
    first = pictures[0].shape
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != first:
            raise ValueError(f"{file} is {picture.shape} where {files[0]} is {first}")
    classes = sorted({file.parent for file in files})
    labels = None
    if len(classes) > 1:
        labels = np.array([classes.index(file.parent) for file in files])
    images = np.stack(pictures)
    return _image_data(images[..., None] if images.ndim == 3 else images, labels, folder)


def _image_data(images: np.ndarray, labels: np.ndarray | None, source: Path) -> ImageData:
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f"{source.name} holds {images.dtype} of shape {images.shape}; "
            "expected uint8 images [N, H, W] or [N, H, W, C]"
        )
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{source.name} has {len(images)} images and {labels.shape} labels")
    return ImageData(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        None if labels is None else torch.from_numpy(labels.astype(np.int64)),
    )
