"""The attention block's CUDA kernels, run on the CPU, by law 4."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastdiff.ops.attention_block import folding, reference
from tests.judge import assert_close_by_law4
from tests.native import on_cpu
from tests.native.on_cpu import A100, H200, Gpu

EPS, SCALE = 1e-6, 0.7
TYPES = {torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
ONE, ONE_A100, TWO = (
    Gpu(1, H200.shared, True),
    Gpu(1, A100.shared, False),
    Gpu(2, H200.shared, True),
)


class Case(NamedTuple):
    """Sizes for which a GPU takes the kernel of this shape (csrc/attention_block/cuda.cu)."""

    shape: str
    gpu: Gpu
    N: int
    C: int
    size: tuple[int, int]
    groups: int
    heads: int = 1
    cluster: int = 1

    def kernel(self, dtype: torch.dtype) -> str:
        name, kind = ("one_head", "One") if self.heads == 1 else ("many_heads", "Many")
        return f"{name}<{TYPES[dtype]}, {kind}Head{'s' * (self.heads > 1)}Shape<{self.shape}>>"


CASES = [
    Case("64, 256, 64, 4, 1", ONE_A100, 1, 64, (8, 8), 32),
    Case("32, 256, 64, 3, 2", Gpu(1, 99 * 1024, False), 2, 64, (1, 1), 8),
    Case("64, 512, 64, 3, 1", ONE, 1, 320, (5, 7), 32),
    Case("32, 512, 64, 3, 1", TWO, 1, 64, (4, 7), 0),
    Case("128, 256, 256, 2, 1", ONE, 1, 64, (13, 19), 4),
    Case("64, 256, 256, 4, 1", TWO, 1, 192, (9, 10), 32),
    Case("32, 256, 256, 4, 1", H200, 1, 64, (16, 16), 64),
    Case("256, 128, 4, 2", H200, 2, 64, (5, 7), 32, heads=2),
    Case("256, 128, 4, 2", H200, 1, 192, (8, 8), 32, heads=3, cluster=3),
    Case("256, 256, 4, 1", ONE, 1, 192, (5, 7), 16, heads=12),
    Case("512, 128, 4, 1", H200, 1, 512, (5, 7), 32, heads=8, cluster=4),
    Case("512, 256, 4, 1", TWO, 1, 384, (3, 3), 0, heads=2, cluster=2),
    Case("768, 256, 2, 1", H200, 1, 576, (5, 7), 32, heads=9, cluster=3),
]
dtypes = pytest.mark.parametrize("dtype", TYPES, ids=["f16", "bf16"])
heads = pytest.mark.parametrize("heads", [1, 2])


def inputs(
    N: int, C: int, size: tuple[int, int], dtype: torch.dtype, offset: float = 0.5
) -> list[Tensor]:
    """x and the six parameters; none of them zero."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = (randn(N, C, *size) * 1.5 + offset).to(dtype, memory_format=torch.channels_last)
    norm = [1 + 0.3 * randn(C), 0.3 * randn(C)]
    weights = [1.5 * randn(3 * C, C) / C**0.5, randn(3 * C) / 3, randn(C, C) / C**0.5, randn(C) / 3]
    return [x, *norm, *(w.to(dtype) for w in weights)]


def fused(*args: Any, gpu: Gpu = H200) -> Tensor:
    y = on_cpu.attention_block(*args, gpu=gpu)
    assert len(on_cpu.launches()) == 1
    return y


@dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.heads}-{case.shape}")
def test_by_law4(case: Case, dtype: torch.dtype) -> None:
    args = (*inputs(case.N, case.C, case.size, dtype), case.groups, EPS, case.heads, SCALE)
    y = fused(*args, gpu=case.gpu)
    [launch] = on_cpu.launches()
    assert (launch.kernel, launch.cluster) == (case.kernel(dtype), case.cluster)
    assert_close_by_law4(y, reference.attention_block, *args)


def test_every_kernel_is_met_above() -> None:
    met = {case.kernel(dtype) for case in CASES for dtype in TYPES}
    assert met == on_cpu.kernels("one_head", "many_heads")


@heads
@pytest.mark.parametrize("offset", [30.0, -300.0])
def test_common_offset(heads: int, offset: float) -> None:
    args = (*inputs(1, 128, (9, 7), torch.bfloat16, offset), 32, EPS, heads, 1.0)
    assert_close_by_law4(fused(*args), reference.attention_block, *args)


@heads
@pytest.mark.parametrize("absent", [(1,), (2,), (4,), (6,), (1, 2, 4, 6)])
def test_parameters_may_be_absent(heads: int, absent: tuple[int, ...]) -> None:
    tensors: list[Tensor | None] = [*inputs(1, 64, (5, 7), torch.bfloat16)]
    for index in absent:
        tensors[index] = None
    args = (*tensors, 32, EPS, heads, 1.0)
    assert_close_by_law4(fused(*args), reference.attention_block, *args)


@dtypes
def test_folded_weights(dtype: torch.dtype) -> None:
    x, norm_weight, norm_bias, *weights = inputs(1, 64, (5, 7), dtype)
    folded = folding.fold_single_head(*weights)
    y = fused(x, norm_weight, norm_bias, *folded, 32, EPS, 1, SCALE)
    args = (x, norm_weight, norm_bias, *weights, 32, EPS, 1, SCALE)
    assert_close_by_law4(y, reference.attention_block, *args)


@heads
def test_nan_stays_in_its_image(heads: int) -> None:
    x, *parameters = inputs(3, 64, (5, 7), torch.bfloat16)
    whole = fused(x, *parameters, 32, EPS, heads, SCALE)
    x[1, 5, 2, 3] = torch.nan
    y = fused(x, *parameters, 32, EPS, heads, SCALE)
    assert y[1].isnan().all()
    assert torch.equal(y[::2], whole[::2])


def test_sizes_that_no_kernel_serves() -> None:
    x, *parameters = inputs(1, 96, (5, 7), torch.bfloat16)
    with pytest.raises(on_cpu.KernelError, match="no kernel serves these sizes"):
        fused(x, *parameters, 32, EPS, 1, SCALE)
