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
    """(conv(x) + residual) * scale, channels-last; `packed`, the weight again, is not looked at."""
    if upsample:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    y = F.conv2d(x, weight, bias, padding=1)
    if residual is not None:
        y = y + residual
    if scale != 1:
        y = y * scale
    return y.contiguous(memory_format=torch.channels_last)
