"""A 3x3 convolution with what stands around it in a UNet, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    upsample: bool = False,
) -> Tensor:
    """(conv(x) + residual) * scale, channels-last; `packed`, the weight again, is not looked at.

    Weight and bias count as rounded to x's dtype.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if upsample:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    y = F.conv2d(x, weight, bias, padding=1)
    if residual is not None:
        y = y + residual
    if scale != 1:
        y = y * scale
    return y.contiguous(memory_format=torch.channels_last)


def conv3x3_gradient(
    x: Tensor, grad: Tensor, upsample: bool, by_tiles: bool = False
) -> tuple[Tensor, Tensor]:
    """Of the weight, [O, C, 3, 3] channels-last, and of the bias, [O]; `grad` is of the output.

    Of short dtypes they are float32. How the kernel multiplies, `by_tiles`, is not looked at.
    """
    if upsample:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    out_channels, dtype = grad.shape[1], accumulated(x.dtype)
    weight = x.new_empty((out_channels, x.shape[1], 3, 3))
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        grad, x, weight, [out_channels], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [False, True, True],
    )  # fmt: skip
    return of_weight.to(dtype, memory_format=torch.channels_last), of_bias.to(dtype)


def conv3x3_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Of x, [N, C, H, W] channels-last, without its upsampling; `grad` is of the output."""
    of_x = F.conv_transpose2d(grad, weight.to(grad.dtype), padding=1)
    return of_x.contiguous(memory_format=torch.channels_last)


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """That of the gradients of weights, for images of a dtype."""
    return torch.promote_types(dtype, torch.float32)
