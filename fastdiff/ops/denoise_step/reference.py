"""One reverse step for every sampler, in plain PyTorch; NOTES.md names the table's columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox_normal.reference import philox_normal

COLUMNS = ("k_x", "k_o", "c_0", "c_x", "c_o", "c_1", "sigma", "l_0", "l_v")


def denoise_step(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_prev, pred_x_start, model_input); of those not asked for, an empty [0]."""
    x = x_t.to(compute_dtype(x_t))
    out = guided(model_output, uncond_output, guidance_scale, x)
    row = rows(step, table, x)
    pred = predict_x_start(x, out, step, table)
    if threshold is not None:
        pred = pred / threshold.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    if clip is not None:
        pred = pred.clamp(-clip, clip)
    x_prev = row["c_0"] * pred + row["c_x"] * x + row["c_o"] * out
    if x_start_before is not None:
        x_prev = x_prev + row["c_1"] * x_start_before.to(x.dtype)
    if noise is None and seed is not None and sample_index is not None:
        noise = philox_normal(list(x.shape), seed, sample_index, step + 1, stream, torch.float32)
    if noise is not None:
        sigma = row["sigma"]
        if model_output.shape[1] > x.shape[1]:
            raw = model_output[:, x.shape[1] :].to(x.dtype)
            sigma = sigma * torch.exp(0.5 * (row["l_0"] + row["l_v"] * raw))
        x_prev = x_prev + sigma * noise.to(x.dtype)
    return (
        as_asked(x_prev, x_t, x_t.dtype),
        as_asked(pred, x_t, x_t.dtype if return_pred_x_start else None),
        as_asked(x_prev, x_t, model_dtype),
    )


def denoise_step_(x_t: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    """(pred_x_start, model_input) as denoise_step gives them; x_prev takes x_t's place."""
    x_prev, pred, model_input = denoise_step(x_t, *arguments)  # type: ignore[arg-type]
    x_t.copy_(x_prev)
    return pred, model_input


def as_asked(value: Tensor, like: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Value rounded to dtype in like's memory format, or [0] where dtype is None."""
    if dtype is None:
        return like.new_empty(0)
    return torch.empty_like(like, dtype=dtype).copy_(value)


def predict_x_start(
    x_t: Tensor,
    model_output: Tensor,
    step: Tensor,
    table: Tensor,
    uncond_output: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """x_0 [N, C, ...] before any clip, in float32 at least; arguments as for denoise_step."""
    x = x_t.to(compute_dtype(x_t))
    row = rows(step, table, x)
    return row["k_x"] * x + row["k_o"] * guided(model_output, uncond_output, guidance_scale, x)


def guided(
    model_output: Tensor, uncond_output: Tensor | None, guidance_scale: float, like: Tensor
) -> Tensor:
    """Out, [N, C, ...] as like, of outputs whose first C channels count."""
    cond = model_output[:, : like.shape[1]].to(like.dtype)
    if uncond_output is None:
        return cond
    uncond = uncond_output[:, : like.shape[1]].to(like.dtype)
    return uncond + guidance_scale * (cond - uncond)


def rows(step: Tensor, table: Tensor, like: Tensor) -> dict[str, Tensor]:
    """Each sample's row: column name -> [N, 1, ...] in like's dtype."""
    row = table[step].to(like.dtype).view(-1, len(COLUMNS), *[1] * (like.ndim - 1))
    return dict(zip(COLUMNS, row.unbind(1), strict=True))


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)
