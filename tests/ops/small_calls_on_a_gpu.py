"""Small calls of every op on the GPU, for compute-sanitizer to watch; each must reach its kernel.

compute-sanitizer --tool memcheck python -m tests.ops.small_calls_on_a_gpu
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdiff.ops import (
    _library,
    biased_sum_,
    denoise_step,
    group_norm_silu,
    philox_normal,
    q_sample,
)

SHAPES = [(3, 2, 5, 7), (2, 6, 301), (2, 3, 16, 48)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    x = torch.rand(shape, device="cuda").to(dtype)
    for memory_format in FORMATS[: 1 + (x.ndim == 4)]:
        yield x.contiguous(memory_format=memory_format)


def elementwise() -> None:
    for shape in SHAPES:
        index = torch.arange(shape[0], device="cuda")
        philox_normal(shape, 7, sample_index=index)
        for x in images(shape):
            table = torch.rand(4, 4, dtype=torch.float64, device="cuda")
            options = {"sample_index": index, "return_noise": True, "return_target": True}
            q_sample(x, index, table, **options)
            biased_sum_(x.clone(), torch.rand(shape[1], device="cuda"), x, 0.5)
            out = torch.cat([x, x], 1).bfloat16()
            table = torch.rand(4, 9, dtype=torch.float64, device="cuda")
            denoise_step(
                x, out, index, table, uncond_output=out, guidance_scale=2.0, clip=1.0,
                x_start_before=x, sample_index=index, return_pred_x_start=True,
                model_dtype=torch.bfloat16,
            )  # fmt: skip


def group_norms() -> None:
    """And their gradients."""
    sizes = [(2, 64, 5, 7), (1, 48, 16, 16), (2, 192, 9, 9), (1, 32, 130, 130), (1, 128, 32, 32)]
    for shape in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            for x in images(shape, dtype):
                both = torch.rand(shape[0], 2 * shape[1], device="cuda")
                scale, shift = both.chunk(2, 1)
                weight = torch.rand(shape[1], device="cuda")
                x.requires_grad_()
                with torch.enable_grad():
                    y = group_norm_silu(x, 16, weight, weight, 1e-6, scale=scale, shift=shift)
                y.backward(torch.ones_like(y))


def attention_blocks() -> None:
    for channels, side, heads in ((64, 5, 1), (256, 16, 1), (64, 8, 2), (512, 8, 8)):
        x = torch.rand(2, channels, side, side, device="cuda").bfloat16()
        norm, qkv, proj = (
            torch.rand(n, channels, device="cuda") for n in (1, 3 * channels, channels)
        )
        torch.ops.fastdiff.attention_block_fused(
            x.contiguous(memory_format=torch.channels_last), norm[0], norm[0], qkv.bfloat16(), None,
            proj.bfloat16(), None, 32, 1e-6, heads, 1.0,
        )  # fmt: skip


def main() -> None:
    ops = ["biased_sum_", "philox_normal", "q_sample", "denoise_step"]
    ops += ["group_norm_silu", "group_norm_silu_gradient"]
    with torch.no_grad():
        elementwise()
        group_norms()
        if torch.cuda.get_device_capability()[0] == 9:
            attention_blocks()
            ops.append("attention_block_fused")
    torch.cuda.synchronize()
    for op in ops:
        calls = _library.native_calls(op, "CUDA")
        print(f"{op}: {calls} calls of its kernel")
        assert calls


if __name__ == "__main__":
    main()
