"""biased_sum_ in one Triton launch over x as it lies in memory."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ..triton import channels_last, grid_of, laid_like, tile_of_sample, walkable
from . import reference

BLOCK = 1024


def biased_sum_(x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float) -> None:
    """As the reference, which serves float64 and odd strides of x."""
    if not walkable(x):
        reference.biased_sum_(x, bias, residual, scale)
        return
    if x.numel():
        _biased_sum_[grid_of(x, BLOCK)](
            x,
            None if bias is None else bias.contiguous(),
            None if residual is None else laid_like(residual, x),
            float(scale),
            math.prod(x.shape[1:]),
            math.prod(x.shape[2:]),
            x.shape[1],
            LAST=channels_last(x),
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )


@triton.jit
def _biased_sum_(
    x,
    bias,
    residual,
    scale,
    elements,
    plane,
    channels,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, start = tile_of_sample(BLOCK)
    inside = start + tl.arange(0, BLOCK)
    mask = inside < elements
    at = sample * elements + inside
    total = tl.load(x + at, mask=mask).to(tl.float32)
    if bias is not None:
        if LAST:
            channel = ((start % channels).to(tl.int32) + tl.arange(0, BLOCK)) % channels
        else:
            channel = inside // plane
        total += tl.load(bias + channel, mask=mask).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + at, mask=mask).to(tl.float32)
    tl.store(x + at, total * scale, mask=mask)
