"""Noising and the training target in one Triton launch; NOTES.md names the table's columns."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..philox_normal.triton import normal_tile
from ..triton import (
    block_of,
    channels_last,
    grid_of,
    laid_like,
    offsets,
    tile_of_sample,
    vector,
    walkable,
)
from . import reference

COLUMNS = tl.constexpr(len(reference.COLUMNS))


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
    """As the reference, which serves float64 and odd strides of x_start."""
    if not walkable(x_start):
        return reference.q_sample(
            x_start,
            t,
            table,
            noise,
            seed,
            sample_index,
            draw,
            stream,
            return_noise,
            return_target,
        )
    x_t = torch.empty_like(x_start)
    z = torch.empty_like(x_start) if return_noise else None
    target = torch.empty_like(x_start) if return_target else None
    block = block_of(x_start)
    if x_start.numel():
        _q_sample[grid_of(x_start, block)](
            x_t,
            z,
            target,
            x_start,
            None if noise is None else laid_like(noise, x_start),
            t.contiguous(),
            table.contiguous(),
            seed,
            None if sample_index is None else sample_index.contiguous(),
            None if draw is None else draw.contiguous(),
            stream,
            math.prod(x_start.shape[1:]),
            math.prod(x_start.shape[2:]),
            x_start.shape[1] if x_start.ndim > 1 else 1,
            LAST=channels_last(x_start),
            BLOCK=block,
            VECTOR=vector(x_start, noise),
            enable_fp_fusion=False,
        )
    return (
        x_t,
        x_start.new_empty(0) if z is None else z,
        x_start.new_empty(0) if target is None else target,
    )


@triton.jit(do_not_specialize=["stream"])
def _q_sample(
    x_t,
    z_out,
    target,
    x_start,
    noise,
    t,
    table,
    seed,
    sample_index,
    draw,
    stream,
    elements,
    plane,
    channels,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    sample, start = tile_of_sample(BLOCK)
    mask = start + tl.arange(0, BLOCK) < elements
    at = sample * elements + offsets(start, plane, channels, LAST, BLOCK)
    row = table + tl.load(t + sample) * COLUMNS
    a_x, a_z = tl.load(row).to(tl.float32), tl.load(row + 1).to(tl.float32)

    x = tl.load(x_start + at, mask=mask).to(tl.float32)
    if noise is not None:
        z = tl.load(noise + at, mask=mask).to(tl.float32)
    else:
        index, drawn = tl.load(sample_index + sample), tl.load(draw + sample)
        z = normal_tile(tl.load(seed), index, drawn, stream, start, BLOCK, VECTOR)

    tl.store(x_t + at, a_x * x + a_z * z, mask=mask)
    if z_out is not None:
        tl.store(z_out + at, z, mask=mask)
    if target is not None:
        y_x, y_z = tl.load(row + 2).to(tl.float32), tl.load(row + 3).to(tl.float32)
        tl.store(target + at, y_x * x + y_z * z, mask=mask)
