"""Weights of 3x3 convolutions as the C++ kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from ..matrix_unit import for_matrix_unit, matrix_unit_shape
from ..panels import PANEL, filled_up, panels_of

_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def pack_conv3x3(weight: Tensor) -> Tensor:
    """weight [O, C, 3, 3] for the kernel that is fastest in its dtype on this processor."""
    if weight.dtype == torch.bfloat16 and _library.has_matrix_unit():
        return for_matrix_unit(weight)
    packed: Tensor = pack_op(weight.detach().float(), False)
    return packed


def for_winograd(weight: Tensor) -> Tensor:
    """weight [O, C, 3, 3] -> G g G^T of each, float32 [ceil(O / 32), 16, C, 32], 0 beyond O.

    Lavin and Gray 2016, section 4.1; computed in float64 and rounded once.
    """
    kernels = filled_up(weight).permute(0, 3, 2, 1)
    G = torch.kron(_G, _G).to(weight.device)
    transformed = G @ kernels.double().reshape(len(kernels), 9, -1)
    return transformed.float().reshape(winograd_shape(weight))


def winograd_shape(weight: Tensor) -> tuple[int, ...]:
    """Of what for_winograd makes of it."""
    return panels_of(weight), 16, weight.shape[1], PANEL


def _reference(weight: Tensor, by_tiles: bool) -> Tensor:
    return for_matrix_unit(weight.bfloat16()) if by_tiles else for_winograd(weight)


def _fake(weight: Tensor, by_tiles: bool) -> Tensor:
    if by_tiles:
        return weight.new_empty(matrix_unit_shape(weight), dtype=torch.bfloat16)
    return weight.new_empty(winograd_shape(weight), dtype=torch.float32)


pack_op = _library.define(
    "conv3x3_pack(Tensor weight, bool by_tiles) -> Tensor", reference=_reference, fake=_fake
)
