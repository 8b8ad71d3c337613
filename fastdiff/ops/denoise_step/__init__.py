"""`denoise_step`: one reverse step x_t -> x_prev, whatever the sampler (NOTES.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from ..philox_normal import checked_counters, signed_seed
from . import reference
from .reference import COLUMNS, predict_x_start

__all__ = ["COLUMNS", "denoise_step", "predict_x_start"]


def denoise_step(
    x_t: Tensor,
    model_output: Tensor,
    step: Tensor,
    table: Tensor,
    *,
    clip: float | None = None,
    threshold: Tensor | None = None,
    x_start_before: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int = 0,
    sample_index: Tensor | None = None,
    stream: int = 0,
) -> tuple[Tensor, Tensor]:
    """One reverse step, an affine map with a clip in the middle.

    With each sample's own row of the table, out and raw the two halves of model_output::

        pred_x_start = clip((k_x * x_t + k_o * out) / threshold)
        x_prev = c_0 * pred_x_start + c_x * x_t + c_o * out + c_1 * x_start_before
                 + sigma * exp((l_0 + l_v * raw) / 2) * z

    Every ancestral, implicit or multistep sampler here is a choice of rows (Ho et al. 2020, eq. 7;
    Song et al. 2021, eq. 12; Lu et al. 2022, DPM-Solver++, eq. 17); a learned variance is l_0 and
    l_v (Nichol and Dhariwal 2021, eq. 15).

    Args:
        x_t: [N, C, ...], floating; computed in float32, or float64 where it is.
        model_output: [N, C, ...], or [N, 2C, ...] whose second half is raw (else the factor is 1).
        step: [N] int64, each sample's row.
        table: [S, 9] float64, columns COLUMNS.
        clip: pred_x_start is held to [-clip, clip]; None leaves it.
        threshold: [N], each sample's divisor; None is 1.
        x_start_before: the step before's pred_x_start, as x_t; None leaves that term out.
        noise: z, as x_t. None draws it by philox_normal for seed, sample_index, draw = step + 1 and
            stream; if sample_index is None too, the step has no noise term.
        seed, sample_index, stream: as for philox_normal.

    Returns:
        (x_prev, pred_x_start), both of x_t's shape and dtype.

    Raises:
        ValueError: shapes or devices that do not fit; a step out of range (on the CPU).
        TypeError: a dtype that does not fit.
    """
    _check(x_t, model_output, step, table)
    same = {"x_start_before": x_start_before, "noise": noise}
    for name, tensor in same.items():
        if tensor is not None and tensor.shape != x_t.shape:
            raise ValueError(
                f"{name} must have x_t's shape {list(x_t.shape)}, got {list(tensor.shape)}."
            )
    if threshold is not None and threshold.shape != x_t.shape[:1]:
        raise ValueError(f"threshold must be [{len(x_t)}], got {list(threshold.shape)}.")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}.")
    if sample_index is not None:
        checked_counters(len(x_t), sample_index, step, stream)
    return _op(
        x_t,
        model_output,
        step,
        table,
        clip,
        threshold,
        x_start_before,
        noise,
        signed_seed(seed),
        sample_index,
        stream,
    )


def _check(x_t: Tensor, model_output: Tensor, step: Tensor, table: Tensor) -> None:
    if x_t.ndim < 2 or not x_t.is_floating_point():
        raise ValueError(f"x_t must be floating [N, C, ...], got {x_t.dtype} {list(x_t.shape)}.")
    N, C, *spatial = x_t.shape
    if list(model_output.shape) not in ([N, C, *spatial], [N, 2 * C, *spatial]):
        raise ValueError(
            f"model_output must be {[N, C, *spatial]}, or {[N, 2 * C, *spatial]} with "
            f"a learned variance; got {list(model_output.shape)}."
        )
    if table.dtype != torch.float64 or table.ndim != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(
            f"table must be float64 [S, {len(COLUMNS)}], got {table.dtype} {list(table.shape)}."
        )
    if step.dtype != torch.int64:
        raise TypeError(f"step must be int64, got {step.dtype}.")
    if list(step.shape) != [N]:
        raise ValueError(f"step must be [{N}], one a sample; got {list(step.shape)}.")
    if step.device.type == "cpu" and N and not 0 <= int(step.min()) <= int(step.max()) < len(table):
        raise ValueError(
            f"step must lie in 0..{len(table) - 1}, the table's rows; got "
            f"{int(step.min())}..{int(step.max())}."
        )
    devices = {x_t.device, model_output.device, step.device, table.device}
    if len(devices) > 1:
        raise ValueError(
            f"x_t, model_output, step and table must share a device; they lie on "
            f"{', '.join(sorted(map(str, devices)))}."
        )


def _fake(x_t: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_t), torch.empty_like(x_t)


_op = _library.define(
    "denoise_step(Tensor x_t, Tensor model_output, Tensor step, Tensor table, float? clip, "
    "Tensor? threshold, Tensor? x_start_before, Tensor? noise, int seed, Tensor? sample_index, "
    "int stream) -> (Tensor, Tensor)",
    reference=reference.denoise_step,
    fake=_fake,
)
