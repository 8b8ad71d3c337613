"""One reverse step for every sampler in one Triton launch; NOTES.md names the table's columns."""

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
K_X, K_O, C_0, C_X, C_O, C_1, SIGMA, L_0, L_V = map(tl.constexpr, range(len(reference.COLUMNS)))


def denoise_step(x_t: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference, which serves float64 and odd strides of x_t."""
    if not walkable(x_t):
        return reference.denoise_step(x_t, *arguments)  # type: ignore[arg-type]
    x_prev = torch.empty_like(x_t)
    return x_prev, *_launch(x_prev, x_t, *arguments)  # type: ignore[arg-type]


def denoise_step_(x_t: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    """As the reference, which serves float64 and odd strides of x_t."""
    if not walkable(x_t):
        return reference.denoise_step_(x_t, *arguments)
    return _launch(x_t, x_t, *arguments)  # type: ignore[arg-type]


def _launch(
    x_prev: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    step: Tensor,
    table: Tensor,
    uncond_output: Tensor | None,
    guidance_scale: float,
    clip: float | None,
    threshold: Tensor | None,
    x_start_before: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    sample_index: Tensor | None,
    stream: int,
    return_pred_x_start: bool,
    model_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    pred = torch.empty_like(x_t) if return_pred_x_start else None
    model_input = torch.empty_like(x_t, dtype=model_dtype) if model_dtype else None
    if not channels_last(model_output):
        model_output = model_output.contiguous()
    block = block_of(x_t, (uncond_output is not None) + (x_start_before is not None))
    if x_t.numel():
        _denoise_step[grid_of(x_t, block)](
            x_prev,
            pred,
            model_input,
            x_t,
            model_output,
            None if uncond_output is None else laid_like(uncond_output, model_output),
            None if x_start_before is None else laid_like(x_start_before, x_t),
            None if noise is None else laid_like(noise, x_t),
            step.contiguous(),
            table.contiguous(),
            None if threshold is None else threshold.contiguous(),
            seed if noise is None else None,
            None if sample_index is None else sample_index.contiguous(),
            stream,
            guidance_scale,
            clip,
            math.prod(x_t.shape[1:]),
            math.prod(x_t.shape[2:]),
            x_t.shape[1],
            LEARNED=model_output.shape[1] > x_t.shape[1],
            X_LAST=channels_last(x_t),
            OUT_LAST=channels_last(model_output),
            BLOCK=block,
            VECTOR=vector(x_t, model_output, x_start_before, noise, model_input),
            enable_fp_fusion=False,
        )
    return (
        x_t.new_empty(0) if pred is None else pred,
        x_t.new_empty(0) if model_input is None else model_input,
    )


@triton.jit(do_not_specialize=["stream"])
def _denoise_step(
    x_prev,
    pred_x_start,
    model_input,
    x_t,
    model_output,
    uncond_output,
    x_start_before,
    noise,
    step,
    table,
    threshold,
    seed,
    sample_index,
    stream,
    guidance_scale,
    clip,
    elements,
    plane,
    channels,
    LEARNED: tl.constexpr,
    X_LAST: tl.constexpr,
    OUT_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    HALVES: tl.constexpr = 2 if LEARNED else 1
    sample, start = tile_of_sample(BLOCK)
    mask = start + tl.arange(0, BLOCK) < elements
    at = sample * elements + offsets(start, plane, channels, X_LAST, BLOCK)
    out_at = offsets(start, plane, channels * HALVES, OUT_LAST, BLOCK)
    out_at += sample * elements * HALVES
    row_index = tl.load(step + sample)
    row = table + row_index * COLUMNS

    x = tl.load(x_t + at, mask=mask).to(tl.float32)
    out = tl.load(model_output + out_at, mask=mask).to(tl.float32)
    if uncond_output is not None:
        uncond = tl.load(uncond_output + out_at, mask=mask).to(tl.float32)
        out = uncond + guidance_scale * (out - uncond)

    pred = coefficient(row, K_X) * x + coefficient(row, K_O) * out
    if threshold is not None:
        pred = tl.div_rn(pred, tl.load(threshold + sample).to(tl.float32))
    if clip is not None:
        pred = tl.clamp(pred, -clip, clip, propagate_nan=tl.PropagateNan.ALL)
    value = coefficient(row, C_0) * pred + coefficient(row, C_X) * x + coefficient(row, C_O) * out
    if x_start_before is not None:
        before = tl.load(x_start_before + at, mask=mask).to(tl.float32)
        value += coefficient(row, C_1) * before

    if noise is not None or seed is not None:
        if noise is not None:
            z = tl.load(noise + at, mask=mask).to(tl.float32)
        else:
            index = tl.load(sample_index + sample)
            z = normal_tile(tl.load(seed), index, row_index + 1, stream, start, BLOCK, VECTOR)
        sigma = coefficient(row, SIGMA)
        if LEARNED:
            raw_at = out_at + (channels if OUT_LAST else elements)
            raw = tl.load(model_output + raw_at, mask=mask).to(tl.float32)
            sigma *= tl.exp(0.5 * (coefficient(row, L_0) + coefficient(row, L_V) * raw))
        value += sigma * z

    tl.store(x_prev + at, value, mask=mask)
    if pred_x_start is not None:
        tl.store(pred_x_start + at, pred, mask=mask)
    if model_input is not None:
        tl.store(model_input + at, value, mask=mask)


@triton.jit
def coefficient(row, COLUMN: tl.constexpr):
    return tl.load(row + COLUMN).to(tl.float32)
