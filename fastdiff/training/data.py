"""Training images, held in memory as uint8: what they are, and in which order they come."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Tell = Callable[[int, int], None]  # how many of how many images are read

# All images lie in memory, once: a larger set is refused before it is read.
LARGEST_BYTES = 32 * 2**30


@dataclass(frozen=True)
class ImageData:
    """Images ``[N, C, H, W]`` uint8 and, where known, class labels ``[N]`` int64 and names."""

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int | None:
        if self.class_names is not None:
            return len(self.class_names)
        return None if self.labels is None else int(self.labels.max()) + 1

    def checksum(self) -> int:
        """Of all pixels and labels: other ones have another, but for one in four billion."""
        found = zlib.crc32(self.images.permute(0, 2, 3, 1).contiguous().numpy().data)
        return found if self.labels is None else zlib.crc32(self.labels.numpy().data, found)

    def part(self, start: int, stop: int) -> ImageData:
        labels = None if self.labels is None else self.labels[start:stop]
        return ImageData(self.images[start:stop], labels, self.class_names)

    def batch(
        self, index: Tensor, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor | None]:
        """The images of ``index`` in [-1, 1] as float32, channels-last, and their labels."""
        images = self.images[index].to(device, torch.float32, memory_format=torch.channels_last)
        labels = None if self.labels is None else self.labels[index].to(device)
        return images.div_(127.5).sub_(1), labels


def load_images(
    path: str | Path, tell: Tell = lambda done, total: None, *, image_size: int = 0
) -> ImageData:
    """Read a data set into memory, once.

    Args:
        path: an idx file of images (``*images*idx3*``, gzipped or not; the labels are
            the file of the same name with ``labels`` and ``idx1``), a folder that holds
            such a pair, an npz with ``images`` ``[N, H, W(, C)]`` uint8 and optionally
            ``labels`` ``[N]``, or with ``arr_0`` and ``arr_1`` in their place, or a folder or a
            zip of pictures, a folder a class where there are folders. Classes of pictures come
            mixed evenly, so that the images at the end are of all of them.
        tell: called as pictures are decoded, with how many are and how many there are.
        image_size: scale and crop all to the middle square of so many pixels a side, by bicubic
            interpolation that averages where it shrinks; 0 takes images of one size as they are.

    Raises:
        ValueError: when there is no such file, it does not hold images of one size, or they take
            more than LARGEST_BYTES.
    """
    from fastdiff.training import arrays, pictures

    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file or folder of images: {path}")
    if path.is_dir():
        idx_files = sorted(path.glob("*images*idx3*"))
        if idx_files:
            return image_data(*arrays.read_idx_pair(idx_files[0]), path, image_size)
        return image_data(*pictures.read_folder(path, tell, image_size), path)
    if path.suffix == ".npz":
        return image_data(*arrays.read_npz(path), path, image_size)
    if path.suffix == ".zip":
        return image_data(*pictures.read_zip(path, tell, image_size), path)
    if "idx3" in path.name:
        return image_data(*arrays.read_idx_pair(path), path, image_size)
    raise ValueError(f"{path.name} is no idx file, npz file, zip or folder of pictures")


def check_bytes(shape: tuple[int, ...], source: Path) -> None:
    """ValueError where that many bytes are more than fastdiff train holds in memory."""
    size = int(np.prod(shape, dtype=np.int64))
    if size > LARGEST_BYTES:
        raise ValueError(
            f"{source.name} holds {size / 2**30:.1f} GiB of images and fastdiff train keeps all in "
            f"memory, up to {LARGEST_BYTES / 2**30:.0f} GiB; take fewer or smaller ones"
        )


def image_data(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer] | None,
    class_names: tuple[str, ...] | None,
    source: Path,
    image_size: int = 0,
) -> ImageData:
    """Of arrays [N, H, W] or [N, H, W, C], not copied unless they are to have another size;
    ValueError for others."""
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"{source.name} holds {images.dtype} of shape {images.shape}; "
            "expected uint8 images [N, H, W] or [N, H, W, C]"
        )
    if images.shape[3] not in (1, 3):
        raise ValueError(
            f"{source.name} holds images of {images.shape[3]} channels; "
            "expected 1 (grey) or 3 (colour)"
        )
    if labels is not None:
        if labels.shape != (len(images),):
            raise ValueError(f"{source.name} has {len(images)} images and {labels.shape} labels")
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise ValueError(f"{source.name} has labels that are no whole numbers from 0 on")
    if image_size and images.shape[1:3] != (image_size, image_size):
        from fastdiff.training.pictures import fitted

        images = fitted(images, image_size)
    return ImageData(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        class_names,
    )


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
