"""group_norm_silu_gradient's CUDA kernels, run on the CPU, by law 4."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops.group_norm_silu import reference
from tests.native import on_cpu
from tests.native.test_group_norm_silu_on_cpu import (
    GPUS,
    KINDS,
    TYPES,
    Kind,
    dtypes,
    kinds,
    layouts,
    randn,
    regimes,
)
from tests.ops.group_norm_silu_gradients import EPS, assert_gradients_by_law4


def kernels(kind: Kind, regime: str, dtype: torch.dtype, like_x: bool = False) -> list[str]:
    T, width = TYPES[dtype], 16 // dtype.itemsize if kind.wide else 1
    last, residual = (str(flag).lower() for flag in (kind.last, like_x))
    if kind.last and not like_x and regime != "twice":
        return [f"gradient_once<{T}, {width}>", "gradient_parameters"]
    sums = f"gradient_{'sums' if kind.last else 'runs'}<{T}, {width}, {residual}>"
    output = f"gradient_output<{T}, {width}, {last}, {residual}>"
    return [sums, "gradient_merge", output, "gradient_parameters"]


def half(x: Tensor) -> Tensor:
    """Of each image: a block holds y's gradient as well."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return x[:, :, : x.shape[2] // 2].contiguous(memory_format=layout)


def judge(x: Tensor, groups: int, *rest: Any, gpu: on_cpu.Gpu, **named: Any) -> list[on_cpu.Launch]:
    """`rest` is weight, bias, scale, shift, silu and residual; returns the launches."""
    launches: list[on_cpu.Launch] = []

    def compute(*arguments: Any) -> list[Tensor]:
        found = on_cpu.group_norm_silu_gradient(*arguments, gpu=gpu)
        assert found is not None
        launches.extend(on_cpu.launches())
        return found

    assert_gradients_by_law4(compute, x, groups, *rest, **named)
    return launches


@dtypes
@kinds
@regimes
def test_by_law4(regime: str, kind: Kind, dtype: torch.dtype) -> None:
    x, groups = kind.x(dtype)
    x, like_x = half(x), half(kind.x(dtype, seed=5)[0])
    N, C = x.shape[:2]
    weight, bias = randn(C, dtype=dtype, seed=1), randn(C, seed=2)
    scale, shift = randn(N, 2 * C, dtype=dtype, seed=3).chunk(2, dim=1)
    added, gpu = randn(N, C, seed=4), GPUS[regime]
    for parameters in ((), (weight, bias, scale, shift, False, added)):
        launches = judge(x, groups, *parameters, gpu=gpu)
        assert [launch.kernel for launch in launches] == kernels(kind, regime, dtype)
        on_chip = launches[0].kernel.startswith("gradient_once")
        assert (launches[0].cluster > 1) == (on_chip and regime == "cluster")
    launches = judge(x, groups, weight, None, None, shift, True, like_x, gpu=gpu)
    assert [launch.kernel for launch in launches] == kernels(kind, regime, dtype, like_x=True)


def test_every_kernel_is_met_above() -> None:
    cases = itertools.product(KINDS, GPUS, TYPES, (False, True))
    met = {name for case in cases for name in kernels(*case)}
    names = ("once", "sums", "runs", "merge", "output", "parameters")
    assert met == on_cpu.kernels(*(f"gradient_{name}" for name in names))


@regimes
@layouts
def test_many_samples(layout: torch.memory_format, regime: str) -> None:
    """More than gradient_parameters takes at a time."""
    x = randn(19, 16, 4, 4).contiguous(memory_format=layout)
    judge(x, 4, randn(16, seed=1), randn(16, seed=2), gpu=GPUS[regime])


@regimes
@layouts
def test_large_offsets(layout: torch.memory_format, regime: str) -> None:
    """Of x, and of what takes them away."""
    x = (randn(1, 32, 24, 24) * 0.1 + 1e2).contiguous(memory_format=layout)
    weight, bias, near = randn(32, seed=1), randn(32, seed=2), randn(1, 32, seed=3) * 0.1
    judge(x, 8, weight, bias, gpu=GPUS[regime])
    judge(x, 8, weight, bias, residual=near - 1e2, gpu=GPUS[regime])


@regimes
@layouts
def test_nan_spoils_its_group_alone(layout: torch.memory_format, regime: str) -> None:
    x = randn(2, 32, 24, 24).contiguous(memory_format=layout)
    grad = torch.ones_like(x)
    grad[0, 0, 1, 1] = torch.nan
    _, mean, rstd = reference.group_norm_silu(x, 8, None, None, EPS)
    found = on_cpu.group_norm_silu_gradient(
        grad, x, 8, None, None, None, None, True, None, mean, rstd, gpu=GPUS[regime]
    )
    assert found is not None
    bad = found[0].isnan().contiguous().view(2, 8, -1)
    assert bad[0, 0].all() and bad.sum() == bad.shape[-1]


@pytest.mark.parametrize(
    ("C", "rows", "gpu", "blocks"),
    [(512, 9, on_cpu.H200, 8), (1024, 129, on_cpu.Gpu(2, 163 * 1024, False), 16)],
)
def test_parts_without_rows(C: int, rows: int, gpu: on_cpu.Gpu, blocks: int) -> None:
    """The first blocks take 2 rows each, or 9."""
    x = randn(1, C, rows // 3, 3).contiguous(memory_format=torch.channels_last)
    assert judge(x, 1, gpu=gpu)[0].blocks == blocks


def test_parts_of_a_channel() -> None:
    """1100 vectors, where a warp takes 1024."""
    x = randn(1, 2, 44, 100)
    launch = judge(x, 2, randn(2, seed=1), randn(2, seed=2), gpu=on_cpu.Gpu(1, 0, False))[0]
    assert launch.kernel == "gradient_runs<float, 4, false>" and launch.blocks == 2


@pytest.mark.parametrize("askew", ["x", "grad"])
def test_an_address_off_16_bytes_takes_single_elements(askew: str) -> None:
    x, grad = (randn(2 * 8 * 64 + 1, seed=i)[i:][: 2 * 8 * 64].view(2, 8, 8, 8) for i in (0, 1))
    if askew == "x":
        x, grad = grad, x
    _, mean, rstd = reference.group_norm_silu(x, 4, None, None, EPS)
    arguments = (grad, x, 4, None, None, None, None, True, None, mean, rstd)
    found = on_cpu.group_norm_silu_gradient(*arguments)
    assert found is not None
    assert on_cpu.launches()[0].kernel == "gradient_runs<float, 1, false>"
    expected = reference.group_norm_silu_gradient(*arguments)
    torch.testing.assert_close(found[0], expected[0])


@pytest.mark.parametrize(("C", "gpu"), [(4096, on_cpu.H200), (1024, on_cpu.Gpu(2, 0, False))])
def test_groups_wider_than_a_block_are_not_served(C: int, gpu: on_cpu.Gpu) -> None:
    """Wider than its threads, or than what it may share."""
    x = randn(1, C, 2, 2).contiguous(memory_format=torch.channels_last)
    mean = torch.zeros(1, 1)
    arguments = (x, x, 1, None, None, None, None, True, None, mean, mean)
    assert on_cpu.group_norm_silu_gradient(*arguments, gpu=gpu) is None
