"""Law 4 for group_norm_silu_gradient's kernels on a GPU, and for the same run on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.group_norm_silu import reference
from tests.judge import assert_close_by_law4

EPS = 1e-6


def assert_gradients_by_law4(
    compute: Callable[..., Sequence[Tensor]],
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    residual: Tensor | None = None,
) -> None:
    """Each gradient of what is given, for random gradients of y; `compute` is called as the op."""
    generator = torch.Generator().manual_seed(9)
    grad = torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator))

    def gradients(
        compute: Callable[..., Sequence[Tensor]], x: Tensor, grad: Tensor, *rest: Any
    ) -> Sequence[Tensor]:
        vectors, residual = rest[:4], rest[4]
        statistics = reference.group_norm_silu(x, groups, None, None, EPS, residual=residual)[1:]
        return compute(grad, x, groups, *vectors, silu, residual, *statistics)

    inputs = (x, grad, weight, bias, scale, shift, residual)
    found = gradients(compute, *inputs)
    by_channel = None if residual is None or residual.shape == x.shape else residual
    for index, leaf in enumerate((x, weight, bias, scale, shift, by_channel)):
        if leaf is not None:

            def plain(*inputs: Any, index: int = index) -> Tensor:
                return gradients(reference.group_norm_silu_gradient, *inputs)[index]

            assert_close_by_law4(found[index], plain, *inputs)
