"""`q_sample`: noising x_0 -> x_t, and what a model should make of it (NOTES.md)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library
from ..philox_normal import checked_counters, checked_seed, readable
from . import reference
from .reference import COLUMNS

__all__ = ["COLUMNS", "QSample", "q_sample"]


class QSample(NamedTuple):
    """What q_sample gives: as x_start each, None where not asked for."""

    x_t: Tensor
    noise: Tensor | None
    target: Tensor | None


def q_sample(
    x_start: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor = 0,
    sample_index: Tensor | None = None,
    draw: int | Tensor = 0,
    stream: int = 0,
    return_noise: bool = False,
    return_target: bool = False,
) -> QSample:
    """Noise x_0, and make the training target in the same pass.

    With each sample's own row of the table::

        x_t = a_x * x_start + a_z * z            (Ho et al. 2020, eq. 4)
        target = y_x * x_start + y_z * z         (epsilon: 0, 1; x_start: 1, 0; v: Salimans and
                                                  Ho 2022, appendix D)

    Args:
        x_start: [N, ...], floating; computed in float32, or float64 where it is.
        t: [N] int64, each sample's row.
        table: [T, 4] float64, columns COLUMNS.
        noise: z, as x_start in shape. None draws it by philox_normal for seed, sample_index, draw
            and stream.
        seed: as for philox_normal, or its 64 bits as int64 [] on x_start's device.
        sample_index, draw, stream: as for philox_normal.
        return_noise: whether to return z, in x_start's dtype; a noise handed in comes back itself.
        return_target: whether to return target.

    Returns:
        x_t, and noise and target where asked for, in x_start's dtype and memory format. Gradients
        reach x_start and a noise handed in.

    Raises:
        ValueError: shapes or devices that do not fit; t out of range (on the CPU); neither noise
            nor sample_index.
        TypeError: a dtype that does not fit.
    """
    _check(x_start, t, table)
    if noise is None and sample_index is None:
        raise ValueError("q_sample takes noise, or sample_index to draw it by; got neither.")
    counters: tuple[Tensor | None, ...] = (None, None, None)
    tensors = {"t": t, "table": table, "noise": noise, "sample_index": sample_index}
    if noise is not None:
        if noise.shape != x_start.shape:
            raise ValueError(
                f"noise must have x_start's shape {list(x_start.shape)}, got {list(noise.shape)}."
            )
        if not noise.is_floating_point():
            raise TypeError(f"noise must be floating, got {noise.dtype}.")
    else:
        assert sample_index is not None
        draw = checked_counters(len(x_start), sample_index, draw, stream)
        counters = (checked_seed(seed, x_start.device), sample_index, draw)
        tensors["draw"] = draw
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x_start.device:
            raise ValueError(
                f"{name} must share x_start's device; they lie on {tensor.device} and "
                f"{x_start.device}."
            )
    drawn = noise is None
    x_t, z, target = _op(
        x_start, t, table, noise, *counters, stream, return_noise and drawn, return_target
    )
    return QSample(
        x_t,
        (z if drawn else noise) if return_noise else None,
        target if return_target else None,
    )


def _check(x_start: Tensor, t: Tensor, table: Tensor) -> None:
    if x_start.ndim < 1 or not x_start.is_floating_point():
        raise ValueError(
            f"x_start must be floating [N, ...], got {x_start.dtype} {list(x_start.shape)}."
        )
    if table.dtype != torch.float64 or table.ndim != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(
            f"table must be float64 [T, {len(COLUMNS)}], got {table.dtype} {list(table.shape)}."
        )
    if t.dtype != torch.int64:
        raise TypeError(f"t must be int64, got {t.dtype}; call t.long().")
    if t.shape != x_start.shape[:1]:
        raise ValueError(f"t must be [{len(x_start)}], one for each sample; got {list(t.shape)}.")
    if len(t) and readable(t) and not 0 <= int(t.min()) <= int(t.max()) < len(table):
        raise ValueError(f"t must lie in 0..{len(table) - 1}, got {int(t.min())}..{int(t.max())}.")


def _fake(x_start: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    *_, return_noise, return_target = arguments
    return (
        torch.empty_like(x_start),
        torch.empty_like(x_start) if return_noise else x_start.new_empty(0),
        torch.empty_like(x_start) if return_target else x_start.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_start, t, table, noise, *_ = inputs
    ctx.dtypes = x_start.dtype, None if noise is None else noise.dtype
    ctx.save_for_backward(t, table)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """The map is linear in x_start and in a noise handed in; its transpose, in float32 at least."""
    of_x_t, _, of_target = (g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads)
    t, table = ctx.saved_tensors
    a_x, a_z, y_x, y_z = reference.rows(t, table, of_x_t)

    def pulled_back(a: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        grad = a * of_x_t
        return (grad + y * of_target if of_target.shape == of_x_t.shape else grad).to(dtype)

    x_dtype, noise_dtype = ctx.dtypes
    of_noise = None if noise_dtype is None else pulled_back(a_z, y_z, noise_dtype)
    return pulled_back(a_x, y_x, x_dtype), None, None, of_noise, *[None] * 6


_op = _library.define(
    "q_sample(Tensor x_start, Tensor t, Tensor table, Tensor? noise, Tensor? seed, "
    "Tensor? sample_index, Tensor? draw, int stream, bool return_noise, bool return_target) "
    "-> (Tensor, Tensor, Tensor)",
    reference=reference.q_sample,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
