"""The images whose likelihood is asked for, and the numbers that key their noise."""

from __future__ import annotations

import torch
from torch import Tensor

# Streams 0 to 2 are those of sampling, of training and encoding, and of validation.
BOUND_STREAM, FLOW_STREAM, PROBE_STREAM = 3, 4, 5


def checked(images: Tensor, class_labels: Tensor | None, sample_index: int | Tensor) -> Tensor:
    """The images' numbers [N]; raises TypeError or ValueError for what is no batch of images."""
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images are {images.dtype}; a likelihood is one of 256 levels: give uint8, such as "
            "((x + 1) * 127.5).round().byte() of x in [-1, 1]."
        )
    if images.ndim < 2:
        raise ValueError(f"images must be [N, C, ...], got {list(images.shape)}.")
    if class_labels is not None and class_labels.shape != images.shape[:1]:
        raise ValueError(f"class_labels must be [{len(images)}], got {list(class_labels.shape)}.")
    if isinstance(sample_index, int):
        return torch.arange(sample_index, sample_index + len(images))
    if sample_index.shape != images.shape[:1]:
        raise ValueError(f"sample_index must be [{len(images)}], got {list(sample_index.shape)}.")
    return sample_index.cpu()


def in_range(images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Levels 0 to 255 in [-1, 1]."""
    return images.to(device, dtype) / 127.5 - 1
