"""Noising and the training target, in plain PyTorch; NOTES.md names the table's columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox_normal.reference import philox_normal

COLUMNS = ("a_x", "a_z", "y_x", "y_z")


def q_sample(
    x_start: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    sample_index: Tensor | None,
    draw: Tensor | None,
    stream: int,
    return_noise: bool,
    return_target: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, noise, target), all as x_start; of those not asked for, an empty [0]."""
    x = x_start.to(torch.promote_types(x_start.dtype, torch.float32))
    if noise is not None:
        z = noise.to(x.dtype)
    else:
        assert seed is not None and sample_index is not None and draw is not None
        z = philox_normal(list(x.shape), seed, sample_index, draw, stream, x.dtype)
    a_x, a_z, y_x, y_z = rows(t, table, x)
    return (
        torch.empty_like(x_start).copy_(a_x * x + a_z * z),
        torch.empty_like(x_start).copy_(z) if return_noise else x_start.new_empty(0),
        torch.empty_like(x_start).copy_(y_x * x + y_z * z)
        if return_target
        else x_start.new_empty(0),
    )


def rows(t: Tensor, table: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Each sample's row: the columns as [N, 1, ...] in like's dtype."""
    return table[t].to(like.dtype).view(-1, len(COLUMNS), *[1] * (like.ndim - 1)).unbind(1)
