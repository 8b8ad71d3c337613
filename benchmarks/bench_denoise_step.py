"""denoise_step, its noise included, beside diffusers' DDPMScheduler.step and a copy of the tensor.

python -m pytest benchmarks/bench_denoise_step.py -s
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from benchmarks.beside import report
from fastdiff.ops import _library, denoise_step, philox_normal
from fastdiff.ops.denoise_step import reference
from fastdiff.samplers import make_plan
from fastdiff.schedules import NoiseSchedule
from tests.judge import assert_close_by_law4

ROW, SEED = 500, 7
PLAN = make_plan(NoiseSchedule.linear(1000), torch.arange(999, -1, -1).numpy(), "ddpm")
SHAPES = [(8, 3, 32, 32), (256, 3, 32, 32), (64, 3, 256, 256)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.many_threads
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.inference_mode()
def test_step(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: nothing is measured, nothing is claimed")
    assert _library.native_kernel("denoise_step", device.upper()), "nothing to measure: see doctor"
    x, out = (
        torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(device, dtype)
        for i in range(2)
    )
    table, index = torch.from_numpy(PLAN.table).to(device), torch.arange(len(x), device=device)
    step, seed = torch.full_like(index, ROW), torch.tensor(SEED, device=device)
    own, peer = x.clone(), DDPMScheduler(1000, 1e-4, 0.02)
    t, generator = 999 - ROW, torch.Generator(device).manual_seed(SEED)

    def fused() -> Tensor:
        options = {"clip": 1.0, "seed": seed, "sample_index": index}
        return denoise_step(x, out, step, table, **options).x_prev

    def in_place() -> Tensor:
        options = {"clip": 1.0, "seed": seed, "sample_index": index, "in_place": True}
        return denoise_step(own, out, step, table, **options).x_prev

    def diffusers() -> Tensor:
        return peer.step(out, t, x, generator=generator).prev_sample

    check(fused, peer, x, out, step, table, index)
    peers = {"clone": x.clone, "in place": in_place, "diffusers": diffusers}
    report(benchmark, fused, peers, passes=3)


def check(
    fused: Callable[[], Tensor],
    peer: DDPMScheduler,
    x: Tensor,
    out: Tensor,
    step: Tensor,
    table: Tensor,
    index: Tensor,
) -> None:
    """Law 4 against the reference, and the peer's own mean and deviation, before any timing."""
    z = philox_normal(x.shape, SEED, sample_index=index, draw=step + 1)

    def plain(x: Tensor, out: Tensor) -> Tensor:
        absent: list[Any] = [None, 1.0, 1.0, None, None, z, None, None, 0, False, None]
        return reference.denoise_step(x, out, step, table, *absent)[0]

    done = fused()
    assert_close_by_law4(done, plain, x, out)
    theirs = peer.step(out, 999 - ROW, x, generator=torch.Generator(x.device)).prev_sample
    mean = plain(x.double(), out.double()) - float(table[ROW, 6]) * z.double()
    gap = (theirs.double() - mean) / float(table[ROW, 6])
    assert abs(float(gap.std()) - 1) < 5 / math.sqrt(2 * gap.numel()) + 2e-3 * (x.dtype != z.dtype)
