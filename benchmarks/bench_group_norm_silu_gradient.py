"""group_norm_silu forward and backward, against eager and compiled PyTorch.

python -m pytest benchmarks/bench_group_norm_silu_gradient.py -s
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_group_norm_silu import compare, drawn, eager, fused, in_every_cell, rivals
from fastdiff.ops import _library
from tests.judge import assert_close_by_law4


@in_every_cell
def test_both(
    benchmark: Any, batch: int, channels: int, side: int, dtype: torch.dtype, layout: str
) -> None:
    assert _library.native_kernel("group_norm_silu_gradient", "CPU"), "nothing to measure"
    inputs = [i.requires_grad_() for i in drawn(batch, channels, side, dtype, layout)]
    grad = torch.randn(inputs[0].shape).to(inputs[0])

    def step(f: Callable[..., Tensor], *inputs: Tensor, index: int = 0) -> Tensor:
        leaves = [i.detach().requires_grad_() for i in inputs]
        y = f(*leaves)
        return torch.autograd.grad(y, leaves, grad.to(y))[index].contiguous()

    for index in range(3):
        assert_close_by_law4(
            step(fused, *inputs, index=index),
            lambda x, *p, k=index: step(eager, x.contiguous(), *p, index=k),
            *inputs,
        )
    compare(
        benchmark,
        {n: lambda f=f: torch.autograd.grad(f(*inputs), inputs, grad) for n, f in rivals().items()},
    )
