"""conv3x3_gradient against oneDNN's gradient of weight and bias, at ddpm-cifar10-32's shapes.

python -m pytest benchmarks/bench_conv3x3_gradient.py -s
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.interleave import medians
from fastdiff.ops import _library
from fastdiff.ops.conv3x3.reference import conv3x3_gradient as onednn
from tests.ops.test_conv3x3 import randn
from tests.ops.test_conv3x3_gradient import judge, op


@pytest.mark.parametrize(
    ("channels", "out_channels", "side"),
    [(128, 128, 32), (384, 256, 32), (256, 256, 16), (512, 256, 16), (512, 256, 8), (256, 256, 4)],
)
@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_gradient(benchmark: Any, batch: int, channels: int, out_channels: int, side: int) -> None:
    assert _library.native_kernel("conv3x3_gradient", "CPU"), "nothing to measure: see doctor"
    x = randn(batch, channels, side, side)
    grad = randn(batch, out_channels, side, side, seed=1)
    judge(x, grad)
    seconds = medians(
        {"fastdiff": lambda: op(x, grad, False), "oneDNN": lambda: onednn(x, grad, False)}
    )
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    print("  " + "  ".join(f"{name} {1e6 * s:.0f} us" for name, s in seconds.items()))
    benchmark.pedantic(op, (x, grad, False), rounds=5, warmup_rounds=1)
