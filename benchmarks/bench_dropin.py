"""diffusers' pipelines before and after `fastdiff.accelerate`, on the CPU.

python -m pytest benchmarks/bench_dropin.py -s

The ddpm-cifar10-32 UNet of random weights in DDPMPipeline and DDIMPipeline; a step of either.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdiff
from benchmarks.interleave import medians
from fastdiff.models import UNet
from tests.models.unets import CIFAR10, peer, randomised

STEPS = 4


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_pipeline(benchmark: Any, pipeline: str, batch: int, layout: str) -> None:
    import diffusers

    torch.manual_seed(0)
    unet = randomised(UNet(**{k: v for k, v in CIFAR10.items() if not k.startswith("_")}))
    scheduler = pipeline.replace("Pipeline", "Scheduler")

    def made() -> Any:
        model: Any = peer(unet)
        if layout == "channels_last":
            model = model.to(memory_format=torch.channels_last)
        pipe = getattr(diffusers, pipeline)(model, getattr(diffusers, scheduler)())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(pipe: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe(batch, generator, num_inference_steps=STEPS, output_type="np").images

    before, after = made(), fastdiff.accelerate(made())
    assert abs(draw(after) - draw(before)).max() < 1e-2

    rivals = {"fastdiff": lambda: draw(after), "diffusers": lambda: draw(before)}
    seconds = {k: s / STEPS for k, s in medians(rivals, rounds=7, warmup=1).items()}
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    print("  " + "  ".join(f"{name} {1e3 * s:.1f} ms a step" for name, s in seconds.items()))
    benchmark.pedantic(draw, (after,), rounds=1)
