"""group_norm_silu's CUDA kernels, run on the CPU, by law 4."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastdiff.ops.group_norm_silu import reference
from tests.judge import assert_close_by_law4
from tests.native import on_cpu

EPS = 1e-6
TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
# No slab fits into a block of the last one, which leaves the kernels that read twice.
GPUS = {"block": on_cpu.A100, "cluster": on_cpu.H200, "twice": on_cpu.Gpu(132, 0, False)}


class Kind(NamedTuple):
    """Vectors of 16 bytes or of one element, how many sums a thread keeps, and the layout."""

    wide: bool
    pieces: int
    last: bool

    def kernels(self, regime: str, dtype: torch.dtype, residual: bool = False) -> list[str]:
        T, width = TYPES[dtype], 16 // dtype.itemsize if self.wide else 1
        last, added = (str(flag).lower() for flag in (self.last, residual))
        once = f"once<{T}, {width}, {self.pieces}, {last}>"
        statistics = f"statistics<{T}, {width}, {self.pieces}, {last}, {added}>"
        output = f"output<{T}, {width}, {last}, {added}>"
        return [statistics, "merge_parts", output] if residual or regime == "twice" else [once]

    def x(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, int]:
        """An input and its groups; where wide and last, groups straddle vectors."""
        depth = 3 * (16 // dtype.itemsize) // self.pieces if self.last else 4
        size = (20, 32) if self.wide and not self.last else (19, 33)
        C = 8 * depth if self.wide or not self.last else 9 * 5
        x = (randn(2, C, *size, seed=seed) + 0.5).to(dtype)
        layout = torch.channels_last if self.last else torch.contiguous_format
        return x.contiguous(memory_format=layout), 8 if C % 8 == 0 else 9


KINDS = [Kind(False, 1, False), Kind(False, 1, True), Kind(True, 1, False)]
KINDS += [Kind(True, pieces, True) for pieces in (1, 2, 4)]
dtypes = pytest.mark.parametrize("dtype", TYPES, ids=["f32", "f16", "bf16"])
layouts = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"]
)
regimes = pytest.mark.parametrize("regime", GPUS)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.wide}-{k.pieces}-{k.last}")


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(x: Tensor, *rest: Any) -> Tensor:
    return reference.group_norm_silu(x, *rest)[0]


def judge(x: Tensor, groups: int, *rest: Any, gpu: on_cpu.Gpu) -> list[on_cpu.Launch]:
    """`rest` is weight, bias, scale, shift, silu and residual; returns the launches."""
    weight, bias, scale, shift, silu, residual = rest or (None, None, None, None, True, None)
    named = {"scale": scale, "shift": shift, "silu": silu, "residual": residual}
    results = on_cpu.group_norm_silu(x, groups, weight, bias, EPS, gpu=gpu, **named)
    assert results is not None
    launches = on_cpu.launches()
    assert_close_by_law4(results[0], plain, x, groups, weight, bias, EPS, *named.values())
    return launches


@dtypes
@kinds
@regimes
def test_by_law4(regime: str, kind: Kind, dtype: torch.dtype) -> None:
    x, groups = kind.x(dtype)
    N, C = x.shape[:2]
    weight, bias = randn(C, dtype=dtype, seed=1), randn(C, seed=2)
    scale, shift = randn(N, 2 * C, dtype=dtype, seed=3).chunk(2, dim=1)
    added, like_x = randn(N, C, seed=4), kind.x(dtype, seed=5)[0]
    gpu = GPUS[regime]
    for parameters in ((), (weight, bias, scale, shift, False, added)):
        launches = judge(x, groups, *parameters, gpu=gpu)
        assert [launch.kernel for launch in launches] == kind.kernels(regime, dtype)
        assert (launches[0].cluster > 1) == (regime == "cluster")
    launches = judge(x, groups, weight, None, None, shift, True, like_x, gpu=gpu)
    assert [launch.kernel for launch in launches] == kind.kernels(regime, dtype, residual=True)


def test_every_kernel_is_met_above() -> None:
    cases = itertools.product(KINDS, GPUS, TYPES, (False, True))
    met = {name for kind, gpu, dtype, added in cases for name in kind.kernels(gpu, dtype, added)}
    assert met == on_cpu.kernels("once", "statistics", "merge_parts", "output")


@dtypes
@regimes
@layouts
def test_statistics(layout: torch.memory_format, regime: str, dtype: torch.dtype) -> None:
    """Mean and 1/std: in float32, but short dtypes' are only good to their own precision."""
    x = (randn(2, 32, 24, 24) + 0.5).to(dtype).contiguous(memory_format=layout)
    results = on_cpu.group_norm_silu(x, 8, eps=EPS, gpu=GPUS[regime])
    assert results is not None
    for index in (1, 2):

        def statistic(x: Tensor, index: int = index) -> Tensor:
            return reference.group_norm_silu(x, 8, None, None, EPS)[index].to(x.dtype)

        assert results[index].dtype == torch.float32
        assert_close_by_law4(results[index].to(dtype), statistic, x)


@regimes
@layouts
def test_large_offsets(regime: str, layout: torch.memory_format) -> None:
    x = randn(1, 32, 24, 24).contiguous(memory_format=layout)
    judge(x * 0.1 + 1e4, 8, gpu=GPUS[regime])
    judge(torch.full_like(x, 3.0), 8, gpu=GPUS[regime])
    x[0, 5, 0, 0] = 1e4  # the first that a thread meets
    judge(x, 8, gpu=GPUS[regime])


@regimes
@layouts
def test_infinities_and_nans_stay_in_their_group(regime: str, layout: torch.memory_format) -> None:
    x = randn(2, 32, 24, 24).contiguous(memory_format=layout)
    x[0, 0, 1, 1], x[1, 9, 2, 2] = torch.nan, torch.inf
    results = on_cpu.group_norm_silu(x, 8, gpu=GPUS[regime])
    assert results is not None
    bad = results[0].isnan().contiguous().view(2, 8, -1)
    assert bad[0, 0].all() and bad[1, 2].all() and bad.sum() == 2 * bad.shape[-1]


@pytest.mark.parametrize(
    ("C", "rows", "gpu", "blocks"),
    [(512, 9, on_cpu.H200, 8), (1024, 129, on_cpu.Gpu(2, 0, False), 16)],
)
def test_parts_without_rows(C: int, rows: int, gpu: on_cpu.Gpu, blocks: int) -> None:
    """The first blocks take 2 rows each, or 9."""
    x = randn(1, C, rows // 3, 3).contiguous(memory_format=torch.channels_last)
    assert judge(x, 1, gpu=gpu)[0].blocks == blocks


def test_an_address_off_16_bytes_takes_single_elements() -> None:
    x = randn(2 * 8 * 64 + 1)[1:].view(2, 8, 8, 8)
    assert judge(x, 4, gpu=on_cpu.H200)[0].kernel == "once<float, 1, 1, false>"


def test_groups_wider_than_a_block_are_not_served() -> None:
    x = randn(1, 4096, 2, 2).contiguous(memory_format=torch.channels_last)
    assert on_cpu.group_norm_silu(x, 1) is None
