"""Weights of convolutions as a processor's matrix unit multiplies them (Intel's AMX)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .huge_pages import in_huge_pages

PANEL = 32  # output channels side by side; kPanel in csrc/direct_convolution/cpu.cpp


def for_matrix_unit(weight: Tensor) -> Tensor:
    """weight [O, C, k, k] of bfloat16 -> [ceil(O / 32), ceil(C / 32), k^2, 2, 16, 16, 2], filled up
    with zeros: of a panel the halves of its output channels, of these pairs of input channels.
    """
    panels, blocks, taps, *_ = matrix_unit_shape(weight)
    out_channels, channels = weight.shape[:2]
    missing = (0, 0, 0, 32 * blocks - channels, 0, PANEL * panels - out_channels)
    filled = F.pad(weight.detach().flatten(2), missing)
    split = filled.reshape(panels, 2, 16, blocks, 16, 2, taps)
    return in_huge_pages(split.permute(0, 3, 6, 1, 4, 2, 5))


def matrix_unit_shape(weight: Tensor) -> tuple[int, ...]:
    """Of what for_matrix_unit makes of it."""
    out_channels, channels, height, width = weight.shape
    return -(-out_channels // PANEL), -(-channels // 32), height * width, 2, 16, 16, 2
