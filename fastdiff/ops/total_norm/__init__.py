"""`total_norm`: the Euclidean norm of many tensors as if they were one, by which gradients are
clipped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _library
from . import reference

__all__ = ["total_norm"]


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """`sqrt(sum of all squares)` of floating-point tensors on one device, [] in their dtype.

    The CPU's kernel takes float32, and adds in float64 what short sums in float32 give; a square
    above float32's range makes the norm infinite. On a GPU it is PyTorch's, few kernels there as
    well. Nothing at all has the norm 0.

    Raises:
        NotImplementedError: a gradient is asked for.
    """
    on_cpu = all(tensor.is_cpu for tensor in tensors)
    out: Tensor = (_op if on_cpu else reference.total_norm)(tensors)
    return out


def _fake(tensors: Sequence[Tensor]) -> Tensor:
    return reference.total_norm(tensors)


_op = _library.define(
    "total_norm(Tensor[] tensors) -> Tensor", reference=reference.total_norm, fake=_fake
)
