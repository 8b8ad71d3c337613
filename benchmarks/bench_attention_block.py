"""attention_block against plain PyTorch, eager and compiled, and its folded form.

python -m pytest benchmarks/bench_attention_block.py -s
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.interleave import medians
from benchmarks.replay import device_medians
from fastdiff.ops import attention_block, attention_block_folded, fold_single_head
from fastdiff.ops.attention_block import composite, reference
from tests.judge import assert_close_by_law4

GROUPS, EPS = 32, 1e-6
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
GPU_SIZES = [(8, 256), (16, 256), (16, 512), (32, 256), (8, 512), (8, 1024)]


def eager(x: Tensor, p: list[Tensor], heads: int) -> Tensor:
    """As a module with three linear layers does it."""
    norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias = p
    n = F.group_norm(x, GROUPS, norm_weight, norm_bias, EPS)
    tokens = n.flatten(2).transpose(1, 2)
    q, k, v = (
        F.linear(tokens, weight, bias).unflatten(2, (heads, -1)).transpose(1, 2)
        for weight, bias in zip(qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    h = F.linear(mixed, proj_weight, proj_bias)
    return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


def fused(x: Tensor, p: list[Tensor], heads: int) -> Tensor:
    return attention_block(x, *p, groups=GROUPS, group_norm_eps=EPS, heads=heads)


def composed(x: Tensor, p: list[Tensor], heads: int) -> Tensor:
    return composite.attention_block(x, *p, GROUPS, EPS, heads, 1.0)


def folded(p: list[Tensor]) -> Callable[[Tensor], Tensor]:
    head = fold_single_head(*p[2:])
    return lambda x: attention_block_folded(x, p[0], p[1], head, groups=GROUPS, group_norm_eps=EPS)


def inputs(
    batch: int, channels: int, side: int, dtype: torch.dtype, layout: str, device: str = "cpu"
) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    C = channels
    shapes = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,)]
    p = [torch.randn(s, device=device) / (s[1] ** 0.5 if len(s) > 1 else 1) for s in shapes]
    x = torch.randn(batch, C, side, side, device=device, dtype=dtype)
    return x.to(memory_format=FORMATS[layout]), [t.to(dtype) for t in p]


def tera_operations(batch: int, tokens: int, channels: int) -> float:
    """Multiplications and additions of the four products and the attention, in 10^12."""
    return batch * tokens * channels * (8 * channels + 4 * tokens) / 1e12


def compiled_eager() -> Callable[..., Tensor]:
    torch.compiler.reset()  # a function is compiled eight times at most
    return torch.compile(eager, fullgraph=True, dynamic=False)


def judge(x: Tensor, p: list[Tensor], heads: int) -> None:
    """The first samples, and the folded block where there is one, by law 4."""

    def truth(x: Tensor, *p: Tensor) -> Tensor:
        return reference.attention_block(x, *p, GROUPS, EPS, heads, 1.0)

    assert_close_by_law4(fused(x, p, heads)[:4], truth, x[:4], *p)
    if heads == 1:
        assert_close_by_law4(folded(p)(x)[:4], truth, x[:4], *p)


def report(benchmark: Any, seconds: dict[str, float], work: float) -> None:
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["tflops"] = {name: work / s for name, s in seconds.items()}
    ours = seconds["fastdiff"]
    benchmark.extra_info["ratio_to"] = {name: s / ours for name, s in seconds.items()}
    print()
    for name, s in seconds.items():
        print(f"  {name:10} {1e6 * s:9.1f} us {work / s:8.2f} TFLOP/s {s / ours:6.2f}")


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    ("channels", "side", "heads"),
    [(256, 8, 1), (256, 16, 1), (256, 16, 4), (256, 32, 1), (512, 8, 8)],
)
@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_cpu(
    benchmark: Any, batch: int, channels: int, side: int, heads: int, dtype: torch.dtype,
    layout: str,
) -> None:  # fmt: skip
    x, p = inputs(batch, channels, side, dtype, layout)
    judge(x, p, heads)
    compiled = compiled_eager()
    rivals: dict[str, Callable[[], object]] = {
        "fastdiff": lambda: fused(x, p, heads),
        "eager": lambda: eager(x, p, heads),
        "compile": lambda: compiled(x, p, heads),
    }
    if heads == 1:
        folded_block = folded(p)
        rivals["folded"] = lambda: folded_block(x)
    seconds = medians(rivals, rounds=50 if batch * side <= 64 else 11, warmup=3)
    report(benchmark, seconds, tera_operations(batch, side**2, channels))
    benchmark.pedantic(fused, (x, p, heads), rounds=5, warmup_rounds=1)


@pytest.mark.gpu
@pytest.mark.parametrize("heads_of", [64, None], ids=["heads of 64", "one head"])
@pytest.mark.parametrize(("side", "channels"), GPU_SIZES)
@pytest.mark.parametrize("batch", [1, 4, 16, 64, 256])
@torch.inference_mode()
def test_gpu(benchmark: Any, batch: int, side: int, channels: int, heads_of: int | None) -> None:
    """Each call replays from a CUDA graph; "composite" is the strongest composition."""
    if not torch.cuda.is_available():
        print("not measured: no GPU is at hand")
        pytest.skip("no GPU is at hand")
    heads = channels // (heads_of or channels)
    x, p = inputs(batch, channels, side, torch.bfloat16, "channels_last", "cuda")
    judge(x, p, heads)
    compiled = compiled_eager()
    calls: dict[str, Callable[[], object]] = {
        "fastdiff": lambda: fused(x, p, heads),
        "composite": lambda: composed(x, p, heads),
        "eager": lambda: eager(x, p, heads),
        "compile": lambda: compiled(x, p, heads),
    }
    if heads == 1:
        folded_block = folded(p)
        calls["folded"] = lambda: folded_block(x)
    report(benchmark, device_medians(calls), tera_operations(batch, side**2, channels))
    benchmark.pedantic(calls["fastdiff"], rounds=5, warmup_rounds=1)
