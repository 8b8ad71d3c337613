"""`denoise_step`: one reverse step x_t -> x_prev, whatever the sampler (NOTES.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _library
from ..philox_normal import checked_counters, checked_seed, readable
from . import reference
from .reference import COLUMNS, predict_x_start

__all__ = ["COLUMNS", "DenoiseStep", "denoise_step", "predict_x_start"]


class DenoiseStep(NamedTuple):
    """What denoise_step gives: [N, C, ...] each, None where not asked for."""

    x_prev: Tensor
    pred_x_start: Tensor | None
    model_input: Tensor | None


def denoise_step(
    x_t: Tensor,
    model_output: Tensor,
    step: Tensor,
    table: Tensor,
    *,
    uncond_output: Tensor | None = None,
    guidance_scale: float = 1.0,
    clip: float | None = None,
    threshold: Tensor | None = None,
    x_start_before: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor = 0,
    sample_index: Tensor | None = None,
    stream: int = 0,
    in_place: bool = False,
    return_pred_x_start: bool = False,
    model_dtype: torch.dtype | None = None,
) -> DenoiseStep:
    """One reverse step, an affine map with a clip in the middle.

    With each sample's own row of the table, cond and raw the two halves of model_output::

        out = uncond_output + guidance_scale * (cond - uncond_output)
        pred_x_start = clip((k_x * x_t + k_o * out) / threshold)
        x_prev = c_0 * pred_x_start + c_x * x_t + c_o * out + c_1 * x_start_before
                 + sigma * exp((l_0 + l_v * raw) / 2) * z

    Every ancestral, implicit or multistep sampler here is a choice of rows (Ho et al. 2020, eq. 7;
    Song et al. 2021, eq. 12; Lu et al. 2022, DPM-Solver++, eq. 17); a learned variance is l_0 and
    l_v (Nichol and Dhariwal 2021, eq. 15), guidance the w + 1 of Ho and Salimans 2022, eq. 6.

    Args:
        x_t: [N, C, ...], floating; computed in float32, or float64 where it is.
        model_output: [N, C, ...], or [N, 2C, ...] whose second half is raw (else the factor is 1).
        step: [N] int64, each sample's row.
        table: [S, 9] float64, columns COLUMNS.
        uncond_output: the model's output without the condition, as model_output; its second half
            does not count. None: out is cond.
        guidance_scale: 1 is no guidance.
        clip: pred_x_start is held to [-clip, clip]; None leaves it.
        threshold: [N] floating, each sample's divisor; None is 1.
        x_start_before: the step before's pred_x_start, as x_t; None leaves that term out.
        noise: z, [N, C, ...] floating. None draws it by philox_normal for seed, sample_index,
            draw = step + 1 and stream; if sample_index is None too, the step has no noise term.
        seed: as for philox_normal, or its 64 bits as int64 [] on x_t's device, which a captured
            graph reads anew at every replay.
        sample_index, stream: as for philox_normal.
        in_place: whether x_prev is written over x_t.
        return_pred_x_start: whether to return it, in x_t's dtype.
        model_dtype: to return x_prev rounded to it as well, for the next call of the model.

    Returns:
        x_prev, and pred_x_start and model_input where asked for, in x_t's memory format.

    Raises:
        ValueError: shapes or devices that do not fit; a step out of range (on the CPU).
        TypeError: a dtype that does not fit.
    """
    _check(x_t, model_output, step, table)
    _check_companions(x_t, model_output, uncond_output, threshold, x_start_before, noise)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}.")
    if model_dtype is not None and not model_dtype.is_floating_point:
        raise TypeError(f"model_dtype must be floating, got {model_dtype}.")
    drawn = noise is None and sample_index is not None
    if sample_index is not None:
        checked_counters(len(x_t), sample_index, step, stream)
        _check_devices(x_t, sample_index=sample_index)
    arguments = (
        model_output,
        step,
        table,
        uncond_output,
        guidance_scale,
        clip,
        threshold,
        x_start_before,
        noise,
        checked_seed(seed, x_t.device) if drawn else None,
        sample_index if drawn else None,
        stream,
        return_pred_x_start,
        model_dtype,
    )
    if in_place:
        x_prev, (pred, model_input) = x_t, _op_in_place(x_t, *arguments)
    else:
        x_prev, pred, model_input = _op(x_t, *arguments)
    return DenoiseStep(
        x_prev,
        pred if return_pred_x_start else None,
        None if model_dtype is None else model_input,
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
    if not model_output.is_floating_point():
        raise TypeError(f"model_output must be floating, got {model_output.dtype}.")
    if table.dtype != torch.float64 or table.ndim != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(
            f"table must be float64 [S, {len(COLUMNS)}], got {table.dtype} {list(table.shape)}."
        )
    if step.dtype != torch.int64:
        raise TypeError(f"step must be int64, got {step.dtype}.")
    if list(step.shape) != [N]:
        raise ValueError(f"step must be [{N}], one for each sample; got {list(step.shape)}.")
    if N and readable(step) and not 0 <= int(step.min()) <= int(step.max()) < len(table):
        raise ValueError(
            f"step must lie in 0..{len(table) - 1}, the table's rows; got "
            f"{int(step.min())}..{int(step.max())}."
        )
    _check_devices(x_t, model_output=model_output, step=step, table=table)


def _check_companions(
    x_t: Tensor,
    model_output: Tensor,
    uncond_output: Tensor | None,
    threshold: Tensor | None,
    x_start_before: Tensor | None,
    noise: Tensor | None,
) -> None:
    companions = {
        "uncond_output": (uncond_output, "model_output", model_output, model_output.dtype),
        "x_start_before": (x_start_before, "x_t", x_t, x_t.dtype),
        "noise": (noise, "x_t", x_t, None),
    }
    for name, (tensor, other, like, dtype) in companions.items():
        if tensor is None:
            continue
        if tensor.shape != like.shape:
            raise ValueError(
                f"{name} must have {other}'s shape {list(like.shape)}, got {list(tensor.shape)}."
            )
        if not tensor.is_floating_point() or tensor.dtype != (dtype or tensor.dtype):
            wanted = f"{other}'s {dtype}" if dtype else "floating"
            raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}.")
    if threshold is not None and threshold.shape != x_t.shape[:1]:
        raise ValueError(f"threshold must be [{len(x_t)}], got {list(threshold.shape)}.")
    _check_devices(
        x_t,
        uncond_output=uncond_output,
        threshold=threshold,
        x_start_before=x_start_before,
        noise=noise,
    )


def _check_devices(x_t: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x_t.device:
            raise ValueError(
                f"{name} must share x_t's device; they lie on {tensor.device} and {x_t.device}."
            )


def _fake(x_t: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    *_, return_pred_x_start, model_dtype = arguments
    pred = torch.empty_like(x_t) if return_pred_x_start else x_t.new_empty(0)
    if not isinstance(model_dtype, torch.dtype):
        return torch.empty_like(x_t), pred, x_t.new_empty(0)
    return torch.empty_like(x_t), pred, torch.empty_like(x_t, dtype=model_dtype)


def _fake_in_place(x_t: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    return _fake(x_t, *arguments)[1:]


_ARGUMENTS = (
    "Tensor model_output, Tensor step, Tensor table, Tensor? uncond_output, float guidance_scale, "
    "float? clip, Tensor? threshold, Tensor? x_start_before, Tensor? noise, Tensor? seed, "
    "Tensor? sample_index, int stream, bool return_pred_x_start, ScalarType? model_dtype"
)
_op = _library.define(
    f"denoise_step(Tensor x_t, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    reference=reference.denoise_step,
    fake=_fake,
)
_op_in_place = _library.define(
    f"denoise_step_(Tensor(a!) x_t, {_ARGUMENTS}) -> (Tensor, Tensor)",
    reference=reference.denoise_step_,
    fake=_fake_in_place,
)
