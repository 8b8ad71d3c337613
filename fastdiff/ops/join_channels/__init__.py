"""`join_channels`: two images' channels, one behind the other, as a UNet joins its skip maps."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library

__all__ = ["join_channels"]


def join_channels(a: Tensor, b: Tensor) -> Tensor:
    """`torch.cat((a, b), dim=1)`, channels-last.

    The C++ kernel takes images whose channels lie side by side, and what it returns lies in memory
    that a map before it had, where torch asks the system for new pages.

    Args:
        a: [N, C, H, W]; b: [N, C', H, W] of its dtype and on its device.

    Returns:
        [N, C + C', H, W].

    Raises:
        ValueError: shapes do not fit.
        TypeError: dtypes differ.
    """
    if a.dim() != 4 or b.dim() != 4 or a.shape[:1] + a.shape[2:] != b.shape[:1] + b.shape[2:]:
        raise ValueError(
            f"the images have shapes {list(a.shape)} and {list(b.shape)}; give two [N, C, H, W] "
            "that differ in C alone"
        )
    if a.dtype != b.dtype:
        raise TypeError(f"the images are {a.dtype} and {b.dtype}; convert one to the other")
    joined: Tensor = _op(a, b)
    return joined


def _reference(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat((a, b), dim=1).contiguous(memory_format=torch.channels_last)


def _fake(a: Tensor, b: Tensor) -> Tensor:
    N, C, H, W = a.shape
    joined = a.new_empty((N, C + b.shape[1], H, W))
    return joined.contiguous(memory_format=torch.channels_last)


_op = _library.define(
    "join_channels(Tensor a, Tensor b) -> Tensor", reference=_reference, fake=_fake
)
