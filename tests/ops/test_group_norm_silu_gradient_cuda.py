"""group_norm_silu_gradient's CUDA kernels by law 4, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops import _library, group_norm_silu
from fastdiff.ops.group_norm_silu import reference
from tests.ops.group_norm_silu_gradients import EPS, assert_gradients_by_law4
from tests.ops.test_group_norm_silu_cuda import SHAPES, dtypes, layouts, randn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
OP = torch.ops.fastdiff.group_norm_silu_gradient.default


def judge(x: Tensor, groups: int, *rest: Any, served: int = 1, **named: Any) -> None:
    """`rest` is weight, bias, scale, shift, silu and residual."""

    def compute(*arguments: Any) -> Sequence[Tensor]:
        calls = _library.native_calls("group_norm_silu_gradient", "CUDA")
        found: Sequence[Tensor] = OP(*arguments)
        torch.cuda.synchronize()
        assert _library.native_calls("group_norm_silu_gradient", "CUDA") == calls + served
        return found

    assert_gradients_by_law4(compute, x, groups, *rest, **named)


@dtypes
@layouts
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_by_law4(
    shape: tuple[int, ...], groups: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = randn(*shape, dtype=dtype).contiguous(memory_format=layout)
    N, C = shape[:2]
    weight, bias = randn(C, dtype=dtype, seed=1), randn(C, seed=2)
    scale, shift = randn(N, 2 * C, dtype=dtype, seed=3).chunk(2, dim=1)
    like_x = randn(*shape, dtype=dtype, seed=5).contiguous(memory_format=layout)
    served = int(not (C == 4096 and layout is torch.channels_last and x.numel() > C))
    judge(x, groups, weight, bias, served=served)
    judge(x, groups, weight, bias, scale, shift, False, randn(N, C, seed=4), served=served)
    judge(x, groups, weight, residual=like_x, served=served)


@layouts
@pytest.mark.parametrize("side", [8, 32, 160])
def test_every_run_has_the_same_bits_also_in_a_graph(
    side: int, layout: torch.memory_format
) -> None:
    x = randn(5, 128, side, side, dtype=torch.bfloat16).contiguous(memory_format=layout)
    weight, bias = randn(128, seed=1), randn(128, seed=2)
    arguments = (randn(*x.shape).to(x), x, 32, weight, bias, None, None, True, None)
    given = reference.group_norm_silu(x, 32, None, None, EPS)[1:]
    first = OP(*arguments, *given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = OP(*arguments, *given)
    graph.replay()
    for again in (OP(*arguments, *given), replayed):
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@layouts
def test_through_autograd(layout: torch.memory_format) -> None:
    x = randn(2, 64, 16, 16).contiguous(memory_format=layout)
    grads = []
    for compute in (group_norm_silu, lambda *a: reference.group_norm_silu(*a)[0]):
        leaves = [t.detach().clone().requires_grad_() for t in (x, randn(64), randn(64, seed=1))]
        compute(leaves[0], 8, leaves[1], leaves[2], EPS).sin().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
