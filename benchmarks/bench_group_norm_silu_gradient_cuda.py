"""group_norm_silu forward and backward on a GPU, channels-last bf16, against eager and compiled.

python -m pytest benchmarks/bench_group_norm_silu_gradient_cuda.py -m gpu -s
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.bench_group_norm_silu import rivals, truth
from benchmarks.bench_group_norm_silu_cuda import PLACES
from benchmarks.ceilings import copy_bandwidth
from benchmarks.replay import device_medians
from fastdiff.ops import _library
from tests.judge import assert_close_by_law4


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [16, 128])
@pytest.mark.parametrize(("channels", "side"), PLACES)
def test_both(benchmark: Any, batch: int, channels: int, side: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: nothing is measured, nothing is claimed")
    assert _library.native_kernel("group_norm_silu_gradient", "CUDA"), "nothing to measure"
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    x, grad = (
        torch.randn(batch, channels, side, side, **options).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    inputs = [t.requires_grad_() for t in (x, *torch.randn(2, channels, **options))]

    def step(f: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(f(*inputs), inputs, grad.to(inputs[0]))

    compared = rivals()
    for index in range(3):

        def plain(*inputs: Tensor, index: int = index) -> Tensor:
            return step(truth, *(i.detach().requires_grad_() for i in inputs))[index]

        assert_close_by_law4(step(compared["fastdiff"], *inputs)[index], plain, *inputs)
    seconds = device_medians(
        {n: lambda f=f: step(f, *inputs) for n, f in compared.items()}, rounds=7
    )
    floor = 5 * x.numel() * x.itemsize / copy_bandwidth()
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["share_of_floor"] = floor / seconds["fastdiff"]
    print("  " + "  ".join(f"{name} {1e6 * s:.4g} us" for name, s in seconds.items()), end="")
    print(f"  {floor / seconds['fastdiff']:.0%} of five passes at a copy's bandwidth")
    benchmark.pedantic(step, (compared["fastdiff"], *inputs), rounds=3, warmup_rounds=1)
