"""Whole runs of sampling on a GPU, against what a user could pick instead.

python -m pytest benchmarks/bench_sampling_gpu.py -m gpu -s

A run is STEPS steps of DDIM from the same x_T, its images left on the device. Peers: diffusers'
UNet2DModel of the same weights, channels-last, with its DDIMScheduler; and the same compiled with
max-autotune, which captures CUDA graphs. Products of float32 are float32's for all. The first run's
seconds, compiling and capturing counted, are told too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.bench_sampling import MODELS, gate
from benchmarks.interleave import medians
from fastdiff import NoiseSchedule, sample
from fastdiff.models import UNet
from tests.models.unets import peer, randomised

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS = 20
Run = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def float32_products() -> Iterator[None]:
    # By the flag that torch.compile reads: it raises where convolutions alone were told otherwise.
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    yield
    cudnn.allow_tf32 = before
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("batch", [1, 8, 64, 256])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_run(benchmark: Any, model: str, batch: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    unet = randomised(MODELS[model]()).cuda().to(dtype)
    unet.conv_out.weight.mul_(0.3)  # outputs of about unit size, so that runs stay comparable
    size = unet.config.sample_size
    assert isinstance(size, int)
    x_T = torch.randn(batch, 3, size, size, device="cuda")
    gate(unet, x_T[:4].to(dtype))
    makers: dict[str, Callable[[UNet], Run]] = {
        "fastdiff": ours, "diffusers": diffusers, "compile": compiled
    }  # fmt: skip
    runs, first, images = dict[str, Run](), dict[str, float](), dict[str, Tensor]()
    for name, make in makers.items():
        torch.cuda.synchronize()
        began = time.perf_counter()
        runs[name] = make(unet)
        images[name] = runs[name](x_T).clone()
        torch.cuda.synchronize()
        first[name] = time.perf_counter() - began
    for name in ("diffusers", "compile"):
        error = (images[name] - images["fastdiff"]).square().mean().sqrt()
        assert float(error) < (1e-3 if dtype == torch.float32 else 0.1), name

    def timed(run: Run) -> Callable[[], None]:
        def call() -> None:
            run(x_T)
            torch.cuda.synchronize()

        return call

    calls = {name: timed(run) for name, run in runs.items()}
    seconds = medians(calls, rounds=7, warmup=2)
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["first_call_s"] = first
    benchmark.extra_info["images_per_second"] = {n: batch / s for n, s in seconds.items()}
    print(
        "  "
        + "  ".join(
            f"{n} {1e3 * s / STEPS:.2f} ms a step, {batch / s:.0f} images/s, first {first[n]:.1f} s"
            for n, s in seconds.items()
        )
    )
    benchmark.pedantic(calls["fastdiff"], rounds=2)


def ours(unet: UNet) -> Run:
    schedule = NoiseSchedule.linear(1000)

    def run(x_T: Tensor) -> Tensor:
        return sample(
            unet, x_T.shape, schedule=schedule, sampler="ddim", steps=STEPS, noise=x_T,
            rederive_eps=False,
        )  # fmt: skip

    return run


def theirs(forward: Callable[..., Any], dtype: torch.dtype) -> Run:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(steps_offset=0)
    scheduler.set_timesteps(STEPS, device="cuda")

    def run(x_T: Tensor) -> Tensor:
        x = x_T
        for t in scheduler.timesteps:
            out = forward(x.to(dtype).contiguous(memory_format=torch.channels_last), t)
            x = scheduler.step(out.float(), t, x).prev_sample
        return x

    return run


def diffusers(unet: UNet) -> Run:
    model: Any = peer(unet).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return theirs(lambda x, t: model(x, t, return_dict=False)[0], unet.dtype)


def compiled(unet: UNet) -> Run:
    model: Any = peer(unet).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(
        lambda x, t: model(x, t, return_dict=False)[0], mode="max-autotune", dynamic=False
    )
    return theirs(forward, unet.dtype)
