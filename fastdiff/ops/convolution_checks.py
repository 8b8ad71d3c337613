"""What conv1x1 and conv3x3 ask of what they are given."""

from __future__ import annotations

import torch
from torch import Tensor

from .matrix_unit import matrix_unit_shape


def check_convolution(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    kernel: int,
    factor: int = 1,
) -> None:
    """Of a kernel that high and wide, on x made `factor` times as large before."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; {op} takes floating [N, C, H, W]")
    N, C, H, W = x.shape
    out_channels = len(weight)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "weight": (weight, (out_channels, C, kernel, kernel)),
        "bias": (bias, (out_channels,)),
        "residual": (residual, (N, out_channels, factor * H, factor * W)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; "
                f"for x of shape {list(x.shape)} give {list(shape)}"
            )
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype} and x {x.dtype}; convert one to the other")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}")


def check_packed(
    packed: Tensor | None, weight: Tensor, shape: tuple[int, ...], packer: str
) -> None:
    """`packer` makes float32 of `shape` of the weight, or what a matrix unit takes in bfloat16."""
    shapes = {torch.float32: shape}
    if weight.dtype == torch.bfloat16:
        shapes[torch.bfloat16] = matrix_unit_shape(weight)
    if packed is None or (packed.is_contiguous() and packed.shape == shapes.get(packed.dtype)):
        return
    raise ValueError(
        f"packed has shape {list(packed.shape)}, which is not of this weight; give {packer}(weight)"
    )
