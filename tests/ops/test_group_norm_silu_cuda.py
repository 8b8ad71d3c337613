"""group_norm_silu's CUDA kernels by law 4, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops import _library, group_norm_silu
from fastdiff.ops.group_norm_silu import reference
from tests.judge import assert_close_by_law4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
EPS = 1e-6
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "last"])

# Both sides of the borders between block, cluster and two launches; widths of ADM and odd ones.
SHAPES = [
    ((1, 128, 32, 32), 32),
    ((2, 128, 64, 64), 32),
    ((16, 128, 32, 32), 32),
    ((300, 64, 8, 8), 32),
    ((1, 256, 16, 16), 32),
    ((1, 512, 8, 8), 32),
    ((1, 1024, 8, 8), 32),
    ((2, 192, 64, 64), 32),
    ((2, 384, 32, 32), 32),
    ((2, 576, 16, 16), 32),
    ((2, 768, 8, 8), 32),
    ((1, 960, 9, 7), 32),
    ((1, 320, 64, 64), 32),
    ((2, 96, 9, 11), 32),
    ((3, 20, 7, 5), 4),
    ((2, 9, 1, 1), 3),
    ((1, 1, 3, 3), 1),
    ((2, 30, 31, 33), 5),
    ((1, 64, 128, 128), 32),
    ((1, 64, 129, 131), 32),
    ((2, 128, 256, 256), 32),
    ((1, 33, 200, 200), 3),
    ((1, 512, 16, 16), 1),
    ((1, 4096, 5, 5), 1),
    ((4, 1, 100, 100), 1),
]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to("cuda", dtype)


def judge(x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
          served: int = 1, **options: Any) -> Tensor:  # fmt: skip
    def plain(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        names = ("scale", "shift", "residual")
        more = dict(zip(names, rest[2:], strict=True))
        return reference.group_norm_silu(
            x, groups, rest[0], rest[1], EPS, silu=options.get("silu", True), **more
        )[0]

    tensors = [options.get(name) for name in ("scale", "shift", "residual")]
    silu = options.get("silu", True)
    calls = _library.native_calls("group_norm_silu", "CUDA")
    y = group_norm_silu(x, groups, weight, bias, EPS, **options)
    torch.cuda.synchronize()
    assert _library.native_calls("group_norm_silu", "CUDA") == calls + served
    arguments = [x, weight, bias, *tensors]
    assert_close_by_law4(y, lambda *a: plain(*a, silu=silu), *arguments)
    return y


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
    served = int(not (C == 4096 and layout is torch.channels_last and x.numel() > C))
    judge(x, groups, weight, bias, served=served)
    judge(x, groups, weight, bias, scale=scale, shift=shift, silu=False, served=served)
    judge(x, groups, residual=randn(N, C, seed=4), served=served)
    judge(x, groups, weight, residual=randn(*shape, dtype=dtype, seed=5), served=served)


@dtypes
@layouts
@pytest.mark.parametrize("side", [8, 32, 64, 160])
def test_large_offsets_and_outliers(
    side: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = randn(2, 64, side, side)
    offset = 1e4 if dtype is torch.float32 else 100.0
    judge((x * 0.1 + offset).to(dtype).contiguous(memory_format=layout), 16)
    for place in ((0, 0, 0, 0), (1, 5, side // 2, 3)):
        spiked = x.clone()
        spiked[place] = offset
        judge(spiked.to(dtype).contiguous(memory_format=layout), 16)
    judge(torch.full_like(x, 3.0).to(dtype).contiguous(memory_format=layout), 16)


@layouts
@pytest.mark.parametrize("side", [8, 64, 160])
def test_infinities_and_nans_stay_in_their_group(side: int, layout: torch.memory_format) -> None:
    x = randn(3, 32, side, side)
    x[0, 0, 1, 1], x[1, 9, 2, 2] = torch.nan, torch.inf
    x = x.contiguous(memory_format=layout)
    y = group_norm_silu(x, 8, None, None, EPS)
    bad = (
        y.view(3, 8, -1).isnan()
        if layout is torch.contiguous_format
        else (y.contiguous().view(3, 8, -1).isnan())
    )
    assert bad[0, 0].all() and bad[1, 2].all() and bad.sum() == 2 * bad.shape[-1]


@layouts
@pytest.mark.parametrize("side", [8, 32, 64, 160])
def test_every_run_has_the_same_bits(side: int, layout: torch.memory_format) -> None:
    x = randn(5, 128, side, side, dtype=torch.bfloat16).contiguous(memory_format=layout)
    first = group_norm_silu(x, 32, None, None, EPS)
    for _ in range(5):
        assert torch.equal(group_norm_silu(x, 32, None, None, EPS), first)


@pytest.mark.parametrize("side", [8, 64, 160])
def test_in_a_graph(side: int) -> None:
    x = randn(2, 128, side, side).to(memory_format=torch.channels_last)
    group_norm_silu(x, 32, None, None, EPS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = group_norm_silu(x, 32, None, None, EPS)
    x.copy_(randn(2, 128, side, side, seed=1))
    graph.replay()
    assert torch.equal(y, group_norm_silu(x, 32, None, None, EPS))


def test_views_other_streams_and_empty_batches() -> None:
    base = randn(2, 66, 17, 16)
    judge(base[:, 1:65], 8)  # made contiguous, at an address of its own
    flat = torch.empty(2 * 64 * 64 + 1, device="cuda")[1:].view(2, 64, 8, 8).normal_()
    judge(flat, 8)  # 4 bytes off: no 16-byte accesses
    assert group_norm_silu(base[:0], 6, None, None, EPS).shape == (0, 66, 17, 16)
    x = randn(2, 64, 32, 32)
    wanted = group_norm_silu(x, 8, None, None, EPS)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = group_norm_silu(x, 8, None, None, EPS)
    stream.synchronize()
    assert torch.equal(y, wanted)
