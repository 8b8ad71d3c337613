"""A 3x3 convolution that halves the image, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def strided_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Tensor | None = None,
    centered: bool = True,
) -> Tensor:
    """conv(x) with stride 2, channels-last; `packed`, the weight again, is not looked at."""
    before = 1 if centered else 0
    width = (x.shape[3] + before) // 2
    # Where y is one pixel wide, oneDNN's bfloat16 reads memory that is nobody's: make it two.
    right = 3 if width == 1 else 1
    y = F.conv2d(F.pad(x, (before, right, before, 1)), weight, bias, stride=2)
    return y[..., :width].contiguous(memory_format=torch.channels_last)
