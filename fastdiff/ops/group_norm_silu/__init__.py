"""`group_norm_silu`: an optional sum, group normalisation, modulation and SiLU in one pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import reference
from .reference import per_channel

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
    """Chain rule through SiLU and the modulation; ATen's closed form through the normalisation.

    The sum and the activation's input are computed again, so nothing of x's size is saved beside x
    and a residual of its shape.
    """
    x, *params, residual, mean, rstd = ctx.saved_tensors
    weight, bias, scale, shift = (None if p is None else p.to(mean.dtype) for p in params)
    (need_x, _, need_weight, need_bias, _, need_scale, need_shift, _, need_residual) = (
        ctx.needs_input_grad
    )
    # ATen's kernel walks both by one layout, and takes channels-last on the CPU alone.
    layout = reference.memory_format(x) if x.is_cpu else torch.contiguous_format
    h = reference.plus(x.to(mean.dtype), residual)
    wide, grad = (_laid_out(a.to(mean.dtype), layout) for a in (h, grad))
    N, C = x.shape[:2]

    if ctx.silu:
        z = _op(wide, ctx.groups, weight, bias, ctx.eps, scale, shift, False, None)[0]
        grad = torch.ops.aten.silu_backward(grad, z)

    spatial = tuple(range(2, x.dim()))
    total = _sum(grad, spatial) if need_shift or need_scale else None
    grad_shift = total if need_shift else None
    grad_scale = None
    if need_scale:
        group_size = C // ctx.groups
        normal = _sum(grad * wide, spatial) - total * mean.repeat_interleave(group_size, 1)
        normal = normal * rstd.repeat_interleave(group_size, 1)
        normal = normal if weight is None else normal * weight
        grad_scale = normal if bias is None else normal + total * bias
    if scale is not None:
        grad = grad * per_channel(1 + scale, x)
    if weight is None:  # ATen gives the gradient of a bias only beside a weight
        weight = mean.new_ones(C)
    # Where h needs no gradient, ATen's channels-last kernel writes one through a null pointer.
    grad_h, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
        grad, wide, mean, rstd, weight, N, C, math.prod(x.shape[2:]), ctx.groups,
        [True, need_weight, need_bias],
    )  # fmt: skip
    grads = (grad_weight, grad_bias, grad_scale, grad_shift)
    grad_weight, grad_bias, grad_scale, grad_shift = (
        None if g is None else g.to(p.dtype) for g, p in zip(grads, params, strict=True)
    )
    grad_x = grad_h.to(x.dtype) if need_x else None
    grad_residual = None
    if need_residual:
        summed = grad_h if residual.shape == x.shape else _sum(grad_h, spatial)
        grad_residual = summed.to(residual.dtype)
    return (
        grad_x, None, grad_weight, grad_bias, None, grad_scale, grad_shift, None, grad_residual
    )  # fmt: skip


def _laid_out(a: Tensor, layout: torch.memory_format) -> Tensor:
    """In that layout, strides of dimensions of one included: ATen's kernel goes by them."""
    a = a.contiguous(memory_format=layout)
    if 1 not in a.shape:
        return a
    strides = torch.empty_like(a, device="meta", memory_format=layout).stride()
    return a.as_strided(a.shape, strides)


def _sum(grad: Tensor, spatial: tuple[int, ...]) -> Tensor:
    return grad.sum(spatial) if spatial else grad


_op = _library.define(
    "group_norm_silu(Tensor x, int groups, Tensor? weight, Tensor? bias, float group_norm_eps, "
    "Tensor? scale, Tensor? shift, bool silu, Tensor? residual) -> (Tensor, Tensor, Tensor)",
    reference=reference.group_norm_silu,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
