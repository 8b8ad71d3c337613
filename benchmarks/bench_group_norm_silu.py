"""group_norm_silu against eager and compiled PyTorch on the shapes of the ddpm-cifar10-32 UNet.

python -m pytest benchmarks/bench_group_norm_silu.py -s
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.interleave import medians
from fastdiff.ops import _library, group_norm_silu
from fastdiff.ops.group_norm_silu import reference
from tests.judge import assert_close_by_law4

GROUPS, EPS = 32, 1e-6
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, GROUPS, weight, bias, EPS))


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return group_norm_silu(x, GROUPS, weight, bias, EPS)


def truth(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.group_norm_silu(x, GROUPS, weight, bias, EPS)[0]


CELLS = [
    pytest.mark.parametrize("layout", FORMATS),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"]),
    pytest.mark.parametrize(
        ("channels", "side"), [(128, 32), (256, 32), (256, 16), (512, 8), (512, 4)]
    ),
    pytest.mark.parametrize("batch", [1, 8]),
]


def in_every_cell(test: Callable[..., None]) -> Callable[..., None]:
    for cell in reversed(CELLS):
        test = cell(test)
    return test


@in_every_cell
@torch.inference_mode()
def test_forward(
    benchmark: Any, batch: int, channels: int, side: int, dtype: torch.dtype, layout: str
) -> None:
    assert _library.native_kernel("group_norm_silu", "CPU"), "nothing to measure: see doctor"
    inputs = drawn(batch, channels, side, dtype, layout)
    assert_close_by_law4(fused(*inputs), truth, *inputs)
    compare(benchmark, {n: lambda f=f: f(*inputs) for n, f in rivals().items()})


def drawn(
    batch: int, channels: int, side: int, dtype: torch.dtype, layout: str
) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side, dtype=dtype).to(memory_format=FORMATS[layout])
    return x, torch.randn(channels, dtype=dtype), torch.randn(channels, dtype=dtype)


def rivals() -> dict[str, Callable[..., Tensor]]:
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    return {"fastdiff": fused, "eager": eager, "compile": compiled}


def compare(benchmark: Any, calls: dict[str, Callable[[], object]]) -> None:
    seconds = medians(calls)
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    for peer in ("eager", "compile"):
        benchmark.extra_info[f"ratio_to_{peer}"] = seconds[peer] / seconds["fastdiff"]
    print("  " + "  ".join(f"{name} {1e6 * s:.0f} us" for name, s in seconds.items()))
    benchmark.pedantic(calls["fastdiff"], rounds=20, warmup_rounds=2)
