"""strided_conv3x3 against oneDNN's convolution of packed weights, at the shapes of UNets.

python -m pytest benchmarks/bench_strided_conv3x3.py -s
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.interleave import medians
from fastdiff.engine.convolution import Packed
from fastdiff.ops import _library, pack_strided_conv3x3, strided_conv3x3
from fastdiff.ops.strided_conv3x3 import reference
from tests.judge import assert_close_by_law4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "behind"])
@pytest.mark.parametrize(("channels", "side"), [(128, 32), (256, 16), (256, 8), (192, 64)])
@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_forward(
    benchmark: Any, batch: int, channels: int, side: int, centered: bool, dtype: torch.dtype
) -> None:
    assert _library.native_kernel("strided_conv3x3", "CPU"), "nothing to measure: see doctor"
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if centered else 0).to(dtype)
    x = torch.randn(batch, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
    packed, theirs = pack_strided_conv3x3(conv.weight), nn.Sequential(Packed(conv, upsample=False))
    if not centered:
        theirs.insert(0, nn.ZeroPad2d((0, 1, 0, 1)))
    inputs = (x, conv.weight, conv.bias)

    def ours() -> torch.Tensor:
        return strided_conv3x3(*inputs, packed=packed, centered=centered)

    assert_close_by_law4(ours(), reference.strided_conv3x3, *inputs, None, centered)
    seconds = medians({"fastdiff": ours, "oneDNN": lambda: theirs(x)})
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["ratio_to_oneDNN"] = seconds["oneDNN"] / seconds["fastdiff"]
    print("  " + "  ".join(f"{name} {1e6 * s:.0f} us" for name, s in seconds.items()))
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
