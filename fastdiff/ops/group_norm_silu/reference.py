"""Group normalisation, modulation and SiLU in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    group_norm_eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output like `x`, and each group's mean and 1/std [N, groups] in `statistics_dtype(x)`.

    Wu and He, "Group Normalization" (2018), eq. 1 to 4; the modulation is the AdaGN of Dhariwal and
    Nichol (2021), section 3.
    """
    dtype = statistics_dtype(x)
    weight, bias, scale, shift = (
        None if p is None else p.to(dtype) for p in (weight, bias, scale, shift)
    )
    N, C = x.shape[:2]
    # ATen's channels-last variance cancels for large offsets
    wide = _contiguous(plus(x.to(dtype), residual))
    y, mean, rstd = torch.native_group_norm(
        wide, weight, bias, N, C, math.prod(x.shape[2:]), groups, group_norm_eps
    )
    if scale is not None:
        y = y * (1 + per_channel(scale, x))
    if shift is not None:
        y = y + per_channel(shift, x)
    if silu:
        y = F.silu(y)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x)), mean, rstd


def group_norm_silu_gradient(
    grad: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of x, weight, bias, scale, shift and a residual [N, C], given `grad` of y.

    The chain rule through SiLU and the modulation; ATen's closed form through the normalisation.
    That of x is also that of a residual of its shape; all others are in `statistics_dtype(x)`, and
    mean nothing for what is not given.
    """
    dtype = mean.dtype
    scale, shift = (None if p is None else p.to(dtype) for p in (scale, shift))
    N, C = x.shape[:2]
    spatial = tuple(range(2, x.dim()))
    weight = mean.new_ones(C) if weight is None else weight.to(dtype)
    bias = mean.new_zeros(C) if bias is None else bias.to(dtype)
    h = plus(x.to(dtype), residual).contiguous()
    means, rstds = (s.repeat_interleave(C // groups, 1) for s in (mean, rstd))
    centered = h - per_channel(means, x)
    grad = grad.to(dtype).contiguous()
    if silu:
        slope, offset = weight * rstds, bias.expand(N, C)
        slope, offset = (p if scale is None else p * (1 + scale) for p in (slope, offset))
        offset = offset if shift is None else offset + shift
        z = torch.addcmul(per_channel(offset, x), centered, per_channel(slope, x))
        grad = torch.ops.aten.silu_backward(grad, z)
    nothing = mean.new_zeros(N, C)
    of_shift = nothing if shift is None and scale is None else _sum(grad, spatial)
    of_scale = nothing
    if scale is not None:
        of_scale = weight * rstds * _sum(grad * centered, spatial) + bias * of_shift
        grad = grad * per_channel(1 + scale, x)
    of_h, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
        grad, h, mean, rstd, weight, N, C, math.prod(x.shape[2:]), groups, [True] * 3
    )
    of_x = of_h.to(x.dtype).contiguous(memory_format=memory_format(x))
    by_channel = residual is not None and residual.shape != x.shape
    of_residual = _sum(of_h, spatial) if by_channel else nothing
    return of_x, of_weight, of_bias, of_scale, of_shift, of_residual


def _contiguous(x: Tensor) -> Tensor:
    # Within vmap a tensor that says so need not be.
    return x.clone(memory_format=torch.contiguous_format) if _torch_func() else x.contiguous()


def _torch_func() -> bool:
    """Whether a transform of `torch.func` is at work."""
    return torch._C._are_functorch_transforms_active()


def _sum(grad: Tensor, spatial: tuple[int, ...]) -> Tensor:
    return grad.sum(spatial) if spatial else grad


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the statistics of `x` are taken."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def plus(x: Tensor, residual: Tensor | None) -> Tensor:
    """`x` and a residual of its shape, or [N, C] by sample and channel; in the dtype of `x`."""
    if residual is None:
        return x
    residual = residual.to(x.dtype)
    return x + (residual if residual.shape == x.shape else per_channel(residual, x))


def per_channel(p: Tensor, x: Tensor) -> Tensor:
    """`p` [C] or [N, C] shaped to broadcast over the spatial axes of `x` [N, C, *spatial]."""
    return p.reshape(*p.shape, *[1] * (x.dim() - 2))


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of the output: channels-last where `x` is so and not also contiguous."""
    if _torch_func():
        return torch.contiguous_format  # vmap knows no other
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format
