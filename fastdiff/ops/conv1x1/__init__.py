"""`conv1x1`: a 1x1 convolution, the same product for every pixel, and a residual sum after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..matrix_unit import matrix_unit_shape
from . import reference

__all__ = ["conv1x1"]


def conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`(conv(x) + bias + residual) * scale`.

    Args:
        x: [N, C, H, W], floating point; the kernel takes bfloat16 whose channels lie side by side.
        weight: [O, C, 1, 1]; bias: [O] or None; both of x's dtype.
        packed: what for_matrix_unit makes of the weight; None convolves by PyTorch.
        residual: as the output, or None.
        scale: of the whole sum.

    Returns:
        [N, O, H, W] of x's dtype, channels-last.

    Raises:
        TypeError: dtypes differ.
        ValueError: a shape or a device does not fit.
    """
    _check(x, weight, bias, packed, residual)
    out: Tensor = _op(x, weight, bias, packed, residual, scale)
    return out


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Tensor | None,
    residual: Tensor | None,
) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; conv1x1 takes floating [N, C, H, W]")
    N, C, H, W = x.shape
    out_channels = len(weight)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "weight": (weight, (out_channels, C, 1, 1)),
        "bias": (bias, (out_channels,)),
        "residual": (residual, (N, out_channels, H, W)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; "
                f"for x of shape {list(x.shape)} give {list(shape)}"
            )
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype} and x {x.dtype}; convert one to the other")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}")
    if packed is not None and packed.shape != matrix_unit_shape(weight):
        raise ValueError(
            f"packed has shape {list(packed.shape)}, which is not of this weight; "
            "give for_matrix_unit(weight)"
        )


def _fake(x: Tensor, weight: Tensor, bias: Any, packed: Any, residual: Any, scale: float) -> Tensor:
    N, _, H, W = x.shape
    y = x.new_empty((N, weight.shape[0], H, W))
    return y.contiguous(memory_format=torch.channels_last)


_op = _library.define(
    "conv1x1(Tensor x, Tensor weight, Tensor? bias, Tensor? packed, Tensor? residual, "
    "float scale) -> Tensor",
    reference=reference.conv1x1,
    fake=_fake,
)
