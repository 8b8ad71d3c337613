"""`strided_conv3x3`: a 3x3 convolution that halves the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..conv1x1.packing import pack_conv1x1, panels_shape
from ..convolution_checks import check_convolution, check_packed
from . import reference

__all__ = ["pack_strided_conv3x3", "strided_conv3x3"]


def strided_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    centered: bool = True,
) -> Tensor:
    """`conv(x) + bias` at every second pixel of every second row.

    With packed weights the C++ kernel computes in float32, whatever the dtype; bfloat16 weights
    that were packed for a processor's matrix unit it multiplies there as they are.

    Args:
        x: [N, C, H, W], floating point; the kernel takes x whose channels lie side by side.
        weight: [O, C, 3, 3]; bias: [O] or None; both of x's dtype.
        packed: what pack_strided_conv3x3 makes of the weight; None convolves by PyTorch.
        centered: whether a row and a column of zeros lie before x as well as after it, as ADM's
            UNet has it, or after it alone, as Ho's.

    Returns:
        [N, O, (H + 1) // 2, (W + 1) // 2] of x's dtype, channels-last; not `centered`
        [N, O, H // 2, W // 2].

    Raises:
        TypeError: dtypes differ.
        ValueError: a shape or a device does not fit.
    """
    check_convolution("strided_conv3x3", x, weight, bias, None, kernel=3)
    if not centered and min(x.shape[2:]) < 2:
        raise ValueError(
            f"x is an image of {x.shape[2]}x{x.shape[3]}; give 2x2 at least, or centered=True"
        )
    products = _as_products(weight.detach().to("meta"))  # whose shape alone is asked for
    check_packed(packed, products, panels_shape(products), "pack_strided_conv3x3")
    out: Tensor = _op(x, weight, bias, packed, centered)
    return out


def pack_strided_conv3x3(weight: Tensor) -> Tensor:
    """weight [O, C, 3, 3] for the kernel that is fastest in its dtype on this processor."""
    return pack_conv1x1(_as_products(weight))


def _as_products(weight: Tensor) -> Tensor:
    """weight [O, C, 3, 3] -> [O, 9 * C, 1, 1], of the pixels of a patch one after the other."""
    return weight.permute(0, 2, 3, 1).flatten(1)[:, :, None, None]


def _fake(x: Tensor, weight: Tensor, bias: Any, packed: Any, centered: bool) -> Tensor:
    N, _, H, W = x.shape
    before = 1 if centered else 0
    y = x.new_empty((N, weight.shape[0], (H + before) // 2, (W + before) // 2))
    return y.contiguous(memory_format=torch.channels_last)


_op = _library.define(
    "strided_conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? packed, bool centered)"
    " -> Tensor",
    reference=reference.strided_conv3x3,
    fake=_fake,
)
