"""`group_norm_silu`: an optional sum, group normalisation, modulation and SiLU in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import reference

__all__ = ["group_norm_silu"]


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    group_norm_eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    residual: Tensor | None = None,
) -> Tensor:
    """`act((1 + scale) * (weight * (h - mean) * rstd + bias) + shift)` of `h = x + residual`.

    Wu and He, "Group Normalization" (2018), eq. 1 to 4; with scale and shift the AdaGN of Dhariwal
    and Nichol, "Diffusion Models Beat GANs" (2021), section 3. The sum and each group's statistics
    are taken in float32 (float64 for float64 input), whatever the dtype of `x`.

    Args:
        x: [N, C, *spatial], floating point. The output keeps its dtype, and its memory format where
            that is contiguous or channels-last; it is contiguous otherwise.
        groups: number of groups; divides C.
        weight, bias: [C] or None, any floating dtype.
        group_norm_eps: added to the variance.
        scale, shift: [N, C] or None, any floating dtype; strided views are read where they lie.
        silu: whether SiLU follows.
        residual: None, a bias by sample and channel, taken as scale and shift are, or a tensor of
            x's shape and dtype.

    Raises:
        TypeError: a tensor is not of a floating dtype, or a residual of x's shape not of x's dtype.
        ValueError: a shape, a device or `groups` does not fit.
    """
    _check(x, groups, weight, bias, scale, shift, residual)
    return _op(x, groups, weight, bias, group_norm_eps, scale, shift, silu, residual)[0]


def _check(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
) -> None:
    if x.dim() < 2:
        raise ValueError(f"x has shape {list(x.shape)}; group_norm_silu takes [N, C, *spatial]")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; group_norm_silu takes a floating dtype: call x.float()")
    N, C = x.shape[:2]
    if groups < 1 or C % groups:
        raise ValueError(f"groups is {groups}, which does not divide the {C} channels of x")
    _check_parameter("weight", weight, x, (C,))
    _check_parameter("bias", bias, x, (C,))
    _check_parameter("scale", scale, x, (N, C))
    _check_parameter("shift", shift, x, (N, C))
    _check_parameter("residual", residual, x, (N, C), x.shape)
    if residual is not None and residual.shape == x.shape and residual.dtype != x.dtype:
        raise TypeError(f"residual is {residual.dtype} and x {x.dtype}; convert one to the other")


def _check_parameter(name: str, p: Tensor | None, x: Tensor, *shapes: tuple[int, ...]) -> None:
    if p is None:
        return
    if p.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(
            f"{name} has shape {list(p.shape)}; for x of shape {list(x.shape)} give {wanted}"
        )
    if not p.is_floating_point():
        raise TypeError(f"{name} is {p.dtype}; give a floating dtype")
    if p.device != x.device:
        raise ValueError(f"{name} is on {p.device} and x on {x.device}; move one to the other")


def _fake(x: Tensor, groups: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], groups), dtype=reference.statistics_dtype(x))
    y = torch.empty_like(x, memory_format=reference.memory_format(x))
    return y, statistics, torch.empty_like(statistics)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.groups, weight, bias, ctx.eps, scale, shift, ctx.silu, residual = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, scale, shift, residual, mean, rstd)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """The sum and the activation's input are computed again, so nothing of x's size is saved beside
    x and a residual of its shape."""
    x, weight, bias, scale, shift, residual, mean, rstd = ctx.saved_tensors
    of_x, of_weight, of_bias, of_scale, of_shift, of_added = _gradient_op(
        grad, x, ctx.groups, weight, bias, scale, shift, ctx.silu, residual, mean, rstd
    )
    like_x = residual is not None and residual.shape == x.shape
    found = {
        0: (of_x, x),
        2: (of_weight, weight),
        3: (of_bias, bias),
        5: (of_scale, scale),
        6: (of_shift, shift),
        8: (of_x if like_x else of_added, residual),
    }
    return tuple(
        found[i][0].to(found[i][1].dtype) if needed else None
        for i, needed in enumerate(ctx.needs_input_grad)
    )


_op = _library.define(
    "group_norm_silu(Tensor x, int groups, Tensor? weight, Tensor? bias, float group_norm_eps, "
    "Tensor? scale, Tensor? shift, bool silu, Tensor? residual) -> (Tensor, Tensor, Tensor)",
    reference=reference.group_norm_silu,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)


def _fake_gradient(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    N, C = x.shape[:2]
    of_x = torch.empty_like(x, memory_format=reference.memory_format(x))
    shapes = [(C,), (C,), (N, C), (N, C), (N, C)]
    return of_x, *(x.new_empty(shape, dtype=reference.statistics_dtype(x)) for shape in shapes)


_gradient_op = _library.define(
    "group_norm_silu_gradient(Tensor grad, Tensor x, int groups, Tensor? weight, Tensor? bias, "
    "Tensor? scale, Tensor? shift, bool silu, Tensor? residual, Tensor mean, Tensor rstd) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.group_norm_silu_gradient,
    fake=_fake_gradient,
)
