"""Weights of 3x3 convolutions as the C++ kernel reads them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PANEL = 32  # output channels side by side; kPanel in csrc/conv3x3/params.h

_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def pack_conv3x3(weight: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """weight [O, C, 3, 3] -> G g G^T of each, float32 [ceil(O / 32), 16, C, 32], 0 beyond O.

    Lavin and Gray 2016, section 4.1; computed in `dtype` and rounded once.
    """
    panels, _, C, _ = packed_shape(weight)
    taps = _filled(weight.detach().flatten(2), 0)  # [panels * 32, C, 9]
    kernels = taps.reshape(panels, PANEL, C, 9).permute(0, 3, 2, 1)
    return _transformed(kernels, weight, dtype).reshape(packed_shape(weight))


def pack_transposed(weight: Tensor) -> Tensor:
    """What pack_conv3x3 makes of weight.flip(2, 3).transpose(0, 1), by which a gradient goes back;
    computed in float32."""
    taps = _filled(weight.detach().flatten(2), 1)  # [O, panels * 32, 9]
    rows, columns, _ = taps.shape
    kernels = taps.reshape(rows, columns // PANEL, PANEL, 9).permute(1, 3, 0, 2)
    # The kernel turned round is its nine taps in reverse.
    packed = _transformed(kernels, weight, torch.float32, reverse=True)
    return packed.reshape(columns // PANEL, 16, rows, PANEL)


def _filled(taps: Tensor, axis: int) -> Tensor:
    """With zeros up to whole panels along the axis."""
    missing = -taps.shape[axis] % PANEL
    return F.pad(taps, (0, 0, 0, 0, 0, missing) if axis == 0 else (0, 0, 0, missing))


def _transformed(
    kernels: Tensor, weight: Tensor, dtype: torch.dtype, *, reverse: bool = False
) -> Tensor:
    """[panels, 9, rows, 32] -> [panels, 16, rows * 32]."""
    G = torch.kron(_G, _G)
    G = (G.flip(1) if reverse else G).to(weight.device, dtype)
    return (G @ kernels.to(dtype).reshape(len(kernels), 9, -1)).float()


def packed_shape(weight: Tensor) -> tuple[int, int, int, int]:
    """Of what pack_conv3x3 makes of it."""
    out_channels, channels = weight.shape[:2]
    return -(-out_channels // PANEL), 16, channels, PANEL
