"""One step of training a whole UNet, against the usual loop over diffusers' UNet2DModel.

python -m pytest benchmarks/bench_training.py -s

A step: noise, forward, backward, clipped gradient, AdamW (fused in both), and the loss read back;
EMA off in both. fastdiff's is `Learner.step` of `fastdiff train`, without flips, with all
that it counts and checks. Peers: the loop of diffusers' training example (DDPMScheduler.add_noise,
F.mse_loss), contiguous and channels-last, and the better of them compiled by torch.compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.interleave import medians
from fastdiff import NoiseSchedule
from fastdiff.models import UNet
from fastdiff.ops import _library
from fastdiff.ranks import ALONE
from fastdiff.training import ImageData, TrainConfig
from fastdiff.training.learner import Learner
from tests.models.unets import CIFAR10, peer, randomised, rms

RATE = 1e-5
LAYOUTS = {"diffusers": torch.contiguous_format, "channels-last": torch.channels_last}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("device", DEVICES)
def test_step(benchmark: Any, device: str, batch: int, precision: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    if device == "cpu":
        assert _library.native_kernel("conv3x3", "CPU"), "nothing to measure: see doctor"
    learner, images = ours(batch, precision, device)
    steps: dict[str, Callable[[], float]] = {
        name: theirs(learner.model, images, precision, layout) for name, layout in LAYOUTS.items()
    }
    gate(learner.model, images)
    index = torch.arange(batch)
    done = iter(range(10**9))
    steps = {"fastdiff": lambda: learner.step(next(done), index).loss, **steps}
    first = {}
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        first[name] = time.perf_counter() - began
    layout = min(
        LAYOUTS, key=medians({n: steps[n] for n in LAYOUTS}, rounds=3, warmup=1).__getitem__
    )
    began = time.perf_counter()
    steps["compile"] = theirs(learner.model, images, precision, LAYOUTS[layout], compiled=True)
    steps["compile"]()
    first["compile"] = time.perf_counter() - began
    rounds = 11 if device == "cpu" else 30
    seconds = medians(
        {n: synchronised(s, device) for n, s in steps.items()}, rounds=rounds, warmup=2
    )
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["first_call_s"] = first
    best = min(s for name, s in seconds.items() if name != "fastdiff")
    print(
        "  "
        + "  ".join(f"{n} {1e3 * s:.0f} ms" for n, s in seconds.items())
        + f"  {best / seconds['fastdiff']:.2f} times the best peer"
    )
    benchmark.pedantic(steps["fastdiff"], rounds=2)


def ours(batch: int, precision: str, device: str) -> tuple[Learner, Tensor]:
    """The CIFAR-10 UNet of the DDPM paper, as diffusers' google/ddpm-cifar10-32 has it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
    config = TrainConfig(
        "", batch_size=batch, learning_rate=RATE, warmup_steps=0, precision=precision,
        channels=128, multipliers=(1, 2, 2, 2), attention_resolutions=(16,), ema_decays=(0.0,),
    )  # fmt: skip
    data = ImageData(pixels, None)
    learner = Learner(config, data, NoiseSchedule.linear(1000), torch.device(device), ALONE)
    learner.averages.clear()
    randomised(learner.model)
    expected = UNet(**{k: v for k, v in CIFAR10.items() if not k.startswith("_")}).config
    assert learner.model.config == expected
    return learner, data.batch(torch.arange(batch), device)[0].contiguous()


def gate(unet: UNet, images: Tensor) -> None:
    """Law 4 of the gradients before any timing, against diffusers' in float32."""
    model: Any = peer(unet)
    exact = flat_gradient(UNet(**unet.config.to_dict()).to(images.device).double(), unet, images)
    found, theirs = (flat_gradient(m, m, images) for m in (unet, model))
    assert rms(found, exact) <= 2 * rms(theirs, exact)


def flat_gradient(model: Any, weights: Any, images: Tensor) -> Tensor:
    """Of the mean squared output, every parameter's, in UNet's order."""
    model.load_state_dict(weights.state_dict())
    dtype = next(model.parameters()).dtype
    x = images.to(dtype, memory_format=torch.channels_last)
    out = model.train()(x, torch.full((len(x),), 500, device=x.device))
    out = out if isinstance(out, Tensor) else out.sample
    parameters = [p for _, p in sorted(model.named_parameters())]
    gradients = torch.autograd.grad(out.square().mean(), parameters)
    return torch.cat([gradient.flatten() for gradient in gradients])


def theirs(
    unet: UNet,
    images: Tensor,
    precision: str,
    layout: torch.memory_format,
    *,
    compiled: bool = False,
) -> Callable[[], float]:
    from diffusers import DDPMScheduler

    model: Any = peer(unet).train().to(memory_format=layout)  # type: ignore[call-overload]
    if compiled:
        torch._dynamo.reset()
    forward = torch.compile(model, dynamic=False) if compiled else model
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    clean = images.contiguous(memory_format=layout)

    def step() -> float:
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, t)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.mse_loss(forward(noisy, t, return_dict=False)[0].float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def synchronised(step: Callable[[], float], device: str) -> Callable[[], object]:
    def call() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return call
