"""Data x_0 ~ N(0, 0.25), for which the best model is known and every sampler is a linear map."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastdiff.samplers import sample
from fastdiff.schedules import NoiseSchedule

VARIANCE = 0.25


def signal_gain(a: float) -> float:
    """E[x_0 | x_t] / x_t at alphas_cumprod a."""
    return math.sqrt(a) * VARIANCE / (VARIANCE * a + 1 - a)


def noise_gain(a: float) -> float:
    """E[epsilon | x_t] / x_t at alphas_cumprod a."""
    return math.sqrt(1 - a) / (VARIANCE * a + 1 - a)


def best_model(
    schedule: NoiseSchedule, prediction_type: str = "epsilon"
) -> Callable[[Tensor, Tensor], Tensor]:
    """The expected prediction, by its definition."""
    gains = []
    for t, a in enumerate(schedule.alphas_cumprod.tolist()):
        x_start, eps = signal_gain(a), noise_gain(a)
        c1, c2 = schedule.posterior_mean_coef1[t], schedule.posterior_mean_coef2[t]
        gains.append(
            {
                "x_start": x_start,
                "epsilon": eps,
                "v": math.sqrt(a) * eps - math.sqrt(1 - a) * x_start,
                "posterior_mean": c1 * x_start + c2,
            }[prediction_type]
        )
    table = torch.tensor(gains, dtype=torch.float64)
    return lambda x, t: table[t].view(-1, *[1] * (x.ndim - 1)).to(x) * x


def sampled_variance(schedule: NoiseSchedule, num_steps: int, **options: Any) -> float:
    """The exact variance of x_0 as sampled: unit noise sent through each draw alone, squared."""
    draws = num_steps + 1

    def noise(draw: int, sample_index: Tensor) -> Tensor:
        return (sample_index == draw).double()[:, None]

    model = best_model(schedule, options.get("prediction_type", "epsilon"))
    x = sample(
        model,
        (draws, 1),
        schedule=schedule,
        clip=False,
        noise=noise,
        dtype=torch.float64,
        **options,
    )
    return float((x**2).sum())


def levels(schedule: NoiseSchedule, visited: list[int]) -> list[tuple[float, float]]:
    """alphas_cumprod of each visited timestep and of the next one down, 1 in the end."""
    a = [float(schedule.alphas_cumprod[t]) for t in visited] + [1.0]
    return list(pairwise(a))
