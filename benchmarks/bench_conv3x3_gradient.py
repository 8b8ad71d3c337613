"""conv3x3_gradient against oneDNN's gradient of weight and bias, at ddpm-cifar10-32's shapes.

In bfloat16 both end in float32, the dtype of the weights under autocast.

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
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@torch.inference_mode()
def test_gradient(
    benchmark: Any, dtype: torch.dtype, batch: int, channels: int, out_channels: int, side: int
) -> None:
    assert _library.native_kernel("conv3x3_gradient", "CPU"), "nothing to measure: see doctor"
    by_tiles = dtype == torch.bfloat16
    if by_tiles and not _library.has_matrix_unit():
        pytest.skip("training takes PyTorch's where there is no matrix unit")
    x = randn(batch, channels, side, side, dtype=dtype)
    grad = randn(batch, out_channels, side, side, dtype=dtype, seed=1)
    judge(x, grad, by_tiles=by_tiles)
    arguments = x, grad, False, by_tiles
    seconds = medians({"fastdiff": lambda: op(*arguments), "oneDNN": lambda: onednn(*arguments)})
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    print("  " + "  ".join(f"{name} {1e6 * s:.0f} us" for name, s in seconds.items()))
    benchmark.pedantic(op, arguments, rounds=5, warmup_rounds=1)
