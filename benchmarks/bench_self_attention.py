"""self_attention against torch's SDPA, at the shapes of ddpm-cifar10-32 and ADM-like UNets.

python -m pytest benchmarks/bench_self_attention.py -s
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.interleave import medians
from fastdiff.ops import _library, self_attention
from fastdiff.ops.attention_block.composite import sdpa_in_image
from fastdiff.ops.self_attention import reference
from tests.judge import assert_close_by_law4

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("channels", "heads", "side"),
    [(256, 1, 16), (256, 1, 4), (256, 4, 32), (384, 6, 16), (512, 8, 8)],
)
@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_forward(
    benchmark: Any, batch: int, channels: int, heads: int, side: int, dtype: torch.dtype
) -> None:
    assert _library.native_kernel("self_attention", "CPU"), "nothing to measure: see doctor"
    torch.manual_seed(0)
    qkv = torch.randn(batch, 3 * channels, side, side, dtype=dtype)
    qkv = qkv.to(memory_format=torch.channels_last)
    assert_close_by_law4(self_attention(qkv, heads), reference.self_attention, qkv, None, heads)

    calls = {
        "fastdiff": lambda: self_attention(qkv, heads),
        "SDPA": lambda: sdpa_in_image(qkv, heads),
    }
    seconds = medians(calls)
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["ratio_to_SDPA"] = seconds["SDPA"] / seconds["fastdiff"]
    print("  " + "  ".join(f"{name} {1e6 * s:.0f} us" for name, s in seconds.items()))
    benchmark.pedantic(calls["fastdiff"], rounds=5, warmup_rounds=1)
