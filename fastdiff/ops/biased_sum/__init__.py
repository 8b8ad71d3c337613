"""`biased_sum_`: what follows a convolution, in one pass and in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _library
from . import reference

__all__ = ["biased_sum_"]


def biased_sum_(
    x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """`x = (x + bias + residual) * scale`, over x; each sum in float32 (float64 for float64).

    Args:
        x: [N, C, *spatial], floating point.
        bias: [C] or None, any floating dtype.
        residual: as x in shape and dtype, or None.

    Returns:
        x.

    Raises:
        TypeError: a tensor is not of a floating dtype, or a residual not of x's dtype.
        ValueError: a shape or a device does not fit.
        NotImplementedError: a gradient is asked for.
    """
    if x.dim() < 2:
        raise ValueError(f"x has shape {list(x.shape)}; biased_sum_ takes [N, C, *spatial]")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; biased_sum_ takes a floating dtype")
    for name, tensor, shape in (("bias", bias, x.shape[1:2]), ("residual", residual, x.shape)):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; give {list(shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; move one")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; give a floating dtype")
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"residual is {residual.dtype} and x {x.dtype}; convert one to the other")
    _op(x, bias, residual, scale)
    return x


def _fake(*_: Any) -> None:
    return None


_op = _library.define(
    "biased_sum_(Tensor(a!) x, Tensor? bias, Tensor? residual, float scale) -> ()",
    reference=reference.biased_sum_,
    fake=_fake,
)
