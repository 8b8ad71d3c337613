"""Weights of 1x1 convolutions as the C++ kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from ..huge_pages import in_huge_pages
from ..matrix_unit import for_matrix_unit
from ..panels import PANEL, filled_up, panels_of


def pack_conv1x1(weight: Tensor) -> Tensor:
    """weight [O, C, 1, 1] for the kernel that is fastest in its dtype on this processor."""
    if weight.dtype == torch.bfloat16 and _library.has_matrix_unit():
        return for_matrix_unit(weight)
    return in_panels(weight)


def in_panels(weight: Tensor) -> Tensor:
    """weight [O, C, 1, 1] -> float32 [ceil(O / 32), C, 32], 0 beyond O."""
    return in_huge_pages(filled_up(weight.float()).squeeze(3).transpose(1, 2))


def panels_shape(weight: Tensor) -> tuple[int, ...]:
    """Of what in_panels makes of it."""
    return panels_of(weight), weight.shape[1], PANEL
