"""`conv1x1`: a 1x1 convolution, the same product for every pixel, and a residual sum after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..convolution_checks import check_convolution, check_packed
from . import reference
from .packing import pack_conv1x1, panels_shape

__all__ = ["conv1x1", "pack_conv1x1"]


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

    With packed weights the C++ kernel computes in float32, whatever the dtype; bfloat16 weights
    that were packed for a processor's matrix unit it multiplies there as they are.

    Args:
        x: [N, C, H, W], floating point; the kernel takes x whose channels lie side by side.
        weight: [O, C, 1, 1]; bias: [O] or None; both of x's dtype.
        packed: what pack_conv1x1 makes of the weight; None convolves by PyTorch.
        residual: as the output, or None.
        scale: of the whole sum.

    Returns:
        [N, O, H, W] of x's dtype, channels-last.

    Raises:
        TypeError: dtypes differ.
        ValueError: a shape or a device does not fit.
    """
    check_convolution("conv1x1", x, weight, bias, residual, kernel=1)
    check_packed(packed, weight, panels_shape(weight), "pack_conv1x1")
    out: Tensor = _op(x, weight, bias, packed, residual, scale)
    return out


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
