"""What only a GPU can show of the schedulers and of accelerate: no waits, and the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch

import fastdiff

from .dummies import SHAPE
from .test_accelerate import MODELS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture
def waits_are_errors() -> Iterator[Any]:
    """Calling it makes torch raise wherever the host would wait for the device."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep"])
def test_no_step_waits(name: str, by_sample: bool, waits_are_errors: Any) -> None:
    """But for the first of each order, which copies its table to the device."""
    scheduler = getattr(fastdiff, f"{name}Scheduler")()
    scheduler.set_timesteps(10, device="cuda")
    x, out = torch.randn(SHAPE, device="cuda"), torch.randn(SHAPE, device="cuda")
    for i, t in enumerate(scheduler.timesteps):
        if i == 3:
            waits_are_errors()
        x = scheduler.step(out, t.expand(4) if by_sample else t, x).prev_sample
    torch.cuda.set_sync_debug_mode("default")
    assert x.isfinite().all()


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep"])
def test_diffusers_numbers(name: str) -> None:
    results = []
    for library in (fastdiff, diffusers):
        scheduler = getattr(library, f"{name}Scheduler")()
        scheduler.set_timesteps(10, device="cuda")
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).cuda()
        torch.manual_seed(1)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.sin(3 * x), t, x).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
def test_accelerated_models(name: str, layout: torch.memory_format) -> None:
    build, config, inputs = MODELS[name]
    model = build(**config).cuda().to(memory_format=layout)
    given = [x.cuda() for x in inputs]
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = model(*given).sample
        found = fastdiff.accelerate(model)(*given).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
