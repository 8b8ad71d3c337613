"""conv3x3 against oneDNN's convolution of packed weights, at the ddpm-cifar10-32 UNet's shapes.

python -m pytest benchmarks/bench_conv3x3.py -s
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.interleave import medians
from fastdiff.ops import _library, conv3x3, pack_conv3x3
from fastdiff.ops.conv3x3 import reference
from tests.judge import assert_close_by_law4


def prepared(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    ones = [1, 1]
    by_pixel = weight.contiguous(memory_format=torch.channels_last)
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        by_pixel, ones, ones, ones, 1, shape
    )
    return packed


def onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    ones = [1, 1]
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, ones, ones, ones, 1, "none", [], ""
    )
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    ("channels", "out_channels", "side"),
    [(128, 128, 32), (384, 256, 32), (256, 256, 16), (512, 256, 16), (512, 256, 8), (256, 256, 4)],
)
@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_forward(
    benchmark: Any, batch: int, channels: int, out_channels: int, side: int, dtype: torch.dtype
) -> None:
    assert _library.native_kernel("conv3x3", "CPU"), "nothing to measure: see doctor"
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, channels, 3, 3, dtype=dtype) / (9 * channels) ** 0.5
    bias = torch.randn(out_channels, dtype=dtype)
    packed, theirs = pack_conv3x3(weight), prepared(weight, x.shape)
    assert_close_by_law4(
        conv3x3(x, weight, bias, packed=packed), reference.conv3x3, x, weight, bias
    )

    seconds = medians(
        {
            "fastdiff": lambda: conv3x3(x, weight, bias, packed=packed),
            "oneDNN": lambda: onednn(x, theirs, bias),
        }
    )
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["ratio_to_oneDNN"] = seconds["oneDNN"] / seconds["fastdiff"]
    print("  " + "  ".join(f"{name} {1e6 * s:.0f} us" for name, s in seconds.items()))
    benchmark.pedantic(conv3x3, (x, weight, bias), {"packed": packed}, rounds=5, warmup_rounds=1)
