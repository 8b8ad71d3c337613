"""What the attention block and its folded form refuse."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Expected = Mapping[str, tuple[Tensor | None, tuple[int, ...]]]


def check_x(x: Tensor, groups: int, heads: int) -> None:
    """Raise unless x is floating [N, C, *spatial], and groups (if not 0) and heads divide C."""
    if x.dim() < 3:
        raise ValueError(f"x has shape {list(x.shape)}; attention_block takes [N, C, *spatial]")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; attention_block takes a floating dtype: call x.float()")
    C = x.shape[1]
    if groups < 0 or (groups and C % groups):
        raise ValueError(f"groups is {groups}, which does not divide the {C} channels of x")
    if heads < 1 or C % heads:
        raise ValueError(f"heads is {heads}, which does not divide the {C} channels of x")


def check_parameters(expected: Expected, like_name: str, like: Tensor) -> None:
    """Raise unless each parameter there is has its shape, a floating dtype and like's device."""
    device = like.device
    for name, (p, shape) in expected.items():
        if p is None or (p.shape == shape and p.device == device and p.dtype.is_floating_point):
            continue
        if p.shape != shape:
            raise ValueError(
                f"{name} has shape {list(p.shape)}; "
                f"for {like_name} of shape {list(like.shape)} give {list(shape)}"
            )
        if p.device != device:
            raise ValueError(
                f"{name} is on {p.device} and {like_name} on {device}; move one to the other"
            )
        raise TypeError(f"{name} is {p.dtype}; give a floating dtype")
