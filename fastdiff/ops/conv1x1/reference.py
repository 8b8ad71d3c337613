"""A 1x1 convolution and a residual sum, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """(conv(x) + residual) * scale, channels-last; `packed`, the weight again, is not looked at."""
    y = F.conv2d(x, weight, bias)
    if residual is not None:
        y = y + residual
    if scale != 1:
        y = y * scale
    return y.contiguous(memory_format=torch.channels_last)
