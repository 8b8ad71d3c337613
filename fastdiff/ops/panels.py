"""Weights of convolutions in float32, in panels of output channels that lie side by side."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

PANEL = 32  # output channels; kPanel in csrc/common/panels.h


def panels_of(weight: Tensor) -> int:
    """How many a weight [O, ...] fills."""
    return -(-len(weight) // PANEL)


def filled_up(weight: Tensor) -> Tensor:
    """weight [O, C, h, w] -> [panels, 32, C, h * w], 0 beyond O."""
    missing = panels_of(weight) * PANEL - len(weight)
    return F.pad(weight.detach().flatten(2), (0, 0, 0, 0, 0, missing)).unflatten(0, (-1, PANEL))
