"""q_sample, its noise drawn and returned, beside diffusers' add_noise on randn_like and a copy.

python -m pytest benchmarks/bench_q_sample.py -s
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from benchmarks.beside import report
from fastdiff.ops import _library, philox_normal, q_sample
from fastdiff.ops.q_sample import reference
from fastdiff.schedules import NoiseSchedule
from tests.judge import assert_close_by_law4

SEED = 7
SCHEDULE = NoiseSchedule.linear(1000)
SIGNAL, DEVIATION = SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod
EPSILON_TABLE = np.stack(np.broadcast_arrays(SIGNAL, DEVIATION, 0.0, 1.0), 1)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.many_threads
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (128, 3, 32, 32), (64, 3, 256, 256)], ids=str)
@torch.inference_mode()
def test_training_pair(
    benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: nothing is measured, nothing is claimed")
    assert _library.native_kernel("q_sample", device.upper()), "nothing to measure: see doctor"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype)
    t = torch.randint(1000, shape[:1], generator=generator).to(device)
    index, seed = torch.arange(len(x), device=device), torch.tensor(SEED, device=device)
    table, peer = torch.from_numpy(EPSILON_TABLE).to(device), DDPMScheduler(1000, 1e-4, 0.02)

    def fused() -> Tensor:
        return q_sample(x, t, table, seed=seed, sample_index=index, return_noise=True).x_t

    def diffusers() -> Tensor:
        return peer.add_noise(x, torch.randn_like(x), t)

    z = philox_normal(x.shape, SEED, sample_index=index).to(dtype)
    given = q_sample(x, t, table, noise=z).x_t

    def plain(x: Tensor, z: Tensor) -> Tensor:
        return reference.q_sample(x, t, table, z, None, None, None, 0, False, False)[0]

    assert_close_by_law4(given, plain, x, z)
    tolerance = 32 * torch.finfo(dtype).eps  # the peer rounds its coefficients to x's dtype
    for same in (fused(), peer.add_noise(x, z, t)):
        torch.testing.assert_close(given, same, rtol=tolerance, atol=tolerance)
    report(benchmark, fused, {"clone": x.clone, "diffusers": diffusers}, passes=3)
