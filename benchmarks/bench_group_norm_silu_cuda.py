"""group_norm_silu on a GPU, channels-last bf16, against eager and compiled PyTorch.

python -m pytest benchmarks/bench_group_norm_silu_cuda.py -m gpu -s
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.bench_group_norm_silu import eager, fused, truth
from benchmarks.ceilings import copy_bandwidth
from benchmarks.replay import device_medians
from fastdiff.ops import _library
from tests.judge import assert_close_by_law4

PLACES = [
    (128, 64), (128, 32), (256, 32), (256, 16), (512, 16), (512, 8), (1024, 8),
    (192, 64), (384, 32), (576, 16), (768, 8),
]  # fmt: skip
LARGE = [(1, 128, 256), (4, 128, 256), (1, 256, 512), (64, 128, 128)]
CELLS = [(n, *place) for n, place in itertools.product((1, 16, 64, 256), PLACES)] + LARGE
ROTATED = 2**28  # bytes of inputs that calls take in turn: far beyond the second-level cache


def rotating(
    op: Callable[..., Tensor], inputs: list[Tensor], *rest: Tensor
) -> Callable[[], Tensor]:
    turns = itertools.cycle(inputs)
    return lambda: op(next(turns), *rest)


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "channels", "side"), CELLS, ids=lambda c: str(c))
@torch.inference_mode()
def test_forward(benchmark: Any, batch: int, channels: int, side: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: nothing is measured, nothing is claimed")
    assert _library.native_kernel("group_norm_silu", "CUDA"), "nothing to measure: see doctor"
    size = 2 * batch * channels * side**2
    shape = (batch, channels, side, side)
    inputs = [
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(
            memory_format=torch.channels_last
        )
        for _ in range(max(1, min(20, ROTATED // size)) if size > 2**23 else 1)
    ]
    rest = (torch.randn(channels, device="cuda"), torch.randn(channels, device="cuda"))
    rest = tuple(p.bfloat16() for p in rest)
    assert_close_by_law4(fused(inputs[0], *rest), truth, inputs[0], *rest)
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    rivals = {"fastdiff": fused, "eager": eager, "compile": compiled}
    seconds = device_medians(
        {name: rotating(op, inputs, *rest) for name, op in rivals.items()},
        calls=20 if size > 2**23 else 50,
        rounds=7,
    )
    floor = 2 * size / copy_bandwidth()
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["share_of_floor"] = floor / seconds["fastdiff"]
    print("  " + "  ".join(f"{name} {1e6 * s:.4g} us" for name, s in seconds.items()), end="")
    print(f"  {floor / seconds['fastdiff']:.0%} of two passes at a copy's bandwidth")
    benchmark.pedantic(fused, (inputs[0], *rest), rounds=3, warmup_rounds=1)
