"""The samples and the model that diffusers' own scheduler tests use, restated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHAPE = (4, 3, 8, 8)
COUNT = 4 * 3 * 8 * 8


def ramp(backwards: bool = False) -> Tensor:
    """0 to 1, the batch its fastest axis."""
    numbers = torch.arange(COUNT).flip(-1) if backwards else torch.arange(COUNT)
    return (numbers.reshape(3, 8, 8, 4) / COUNT).permute(3, 0, 1, 2)


def model(sample: Tensor, t: Any) -> Tensor:
    if isinstance(t, Tensor):
        t = t.reshape(-1, 1, 1, 1).to(sample.dtype)
    return sample * t / (t + 1)


def walk(scheduler: Any, timesteps: Any, sample: Tensor, **arguments: Any) -> Tensor:
    """The loop of a pipeline."""
    for t in timesteps:
        sample = scheduler.step(model(sample, t), t, sample, **arguments).prev_sample
    return sample


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(
        shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)
