"""Ancestral sampling against its closed form, the posterior's own step, and diffusers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.diffusion import PREDICTION_TYPES, VARIANCE_TYPES, p_mean_variance
from fastdiff.samplers import sample
from fastdiff.schedules import SPACINGS, NoiseSchedule, timesteps
from tests.samplers.gaussian_data import best_model, levels, sampled_variance, signal_gain

T = 1000
LINEAR = NoiseSchedule.linear(T)


def closed_form(schedule: NoiseSchedule, visited: list[int], variance_type: str) -> float:
    variance = 1.0
    for a, before in levels(schedule, visited):
        beta = 1 - a / before
        mean = math.sqrt(before) * beta / (1 - a) * signal_gain(a)
        mean += math.sqrt(1 - beta) * (1 - before) / (1 - a)
        small = beta * (1 - before) / (1 - a)
        added = 0.0 if before == 1 else small if variance_type == "fixed_small" else beta
        variance = mean**2 * variance + added
    return variance


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_strided_variance_is_the_closed_form(steps: int, spacing: str, variance_type: str) -> None:
    got = sampled_variance(LINEAR, steps, steps=steps, spacing=spacing, variance_type=variance_type)
    wanted = closed_form(LINEAR, timesteps(T, steps, spacing).tolist(), variance_type)
    assert got == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_prediction_type_gives_the_same_variance(prediction_type: str) -> None:
    got = sampled_variance(LINEAR, 45, steps="10,15,20", prediction_type=prediction_type)
    visited = timesteps(T, "10,15,20").tolist()
    assert got == pytest.approx(closed_form(LINEAR, visited, "fixed_small"), rel=1e-8)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_a_thousand_steps_give_the_datas_variance(variance_type: str) -> None:
    got = sampled_variance(LINEAR, T, variance_type=variance_type)
    assert got == pytest.approx(
        closed_form(LINEAR, list(range(T - 1, -1, -1)), variance_type), rel=1e-9
    )
    assert got == pytest.approx(0.25, rel=0.03)


def test_drawn_samples_have_that_variance() -> None:
    x = sample(best_model(LINEAR), (256, 1, 16, 16), schedule=LINEAR, steps=50, clip=False, seed=1)
    wanted = closed_form(LINEAR, timesteps(T, 50).tolist(), "fixed_small")
    spread = wanted * math.sqrt(2 / x.numel())
    assert abs(float(x.var()) - wanted) < 4 * spread
    assert abs(float(x.mean())) < 4 * math.sqrt(wanted / x.numel())


def wavy(channels: int) -> Any:
    """A nonlinear model whose output often leaves [-1, 1]; channels times x's channels out."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        phase = (t.to(x) / 150).view(-1, *[1] * (x.ndim - 1))
        return torch.cat([torch.sin(3 * x + phase + i) for i in range(channels)], 1)

    return model


def stack(count: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("clip", [True, False, 1.5])
@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_all_steps_are_the_steps_of_p_mean_variance(
    prediction_type: str, variance_type: str, clip: bool | float
) -> None:
    schedule = NoiseSchedule.linear(20, 0.01, 0.3)
    model = wavy(2 if variance_type.startswith("learned") else 1)
    noise = stack(21, 2, 2, 3, 3)
    options: dict[str, Any] = {
        "prediction_type": prediction_type,
        "variance_type": variance_type,
        "clip": clip,
    }
    x = noise[0]
    for k in range(20):
        t = torch.full((2,), 19 - k)
        p = p_mean_variance(schedule, model(x, t), x, t, **options)
        x = p.mean + (0.5 * p.log_variance).exp() * noise[k + 1] * (k < 19)
    got = sample(
        model,
        x.shape,
        schedule=schedule,
        noise=lambda draw, _: noise[draw],
        dtype=torch.float64,
        **options,
    )
    torch.testing.assert_close(got, x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 50])
def test_diffusers_step_by_step(
    steps: int, spacing: str, prediction_type: str, variance_type: str
) -> None:
    from diffusers import DDPMScheduler

    peer = DDPMScheduler(
        T, timestep_spacing=spacing, prediction_type=prediction_type, variance_type=variance_type
    )
    peer.alphas_cumprod = torch.tensor(LINEAR.alphas_cumprod)
    peer.set_timesteps(steps)
    shape, model = (2, 1, 4, 4), wavy(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    for t in peer.timesteps[:-1]:
        x = peer.step(model(x, t.expand(2)), t, x, generator=generator).prev_sample
    last = peer.timesteps[-1]
    wanted = peer.step(model(x, last.expand(2)), last, x).pred_original_sample
    drawn = torch.Generator().manual_seed(0)
    noise = [torch.randn(shape, dtype=torch.float64, generator=drawn) for _ in range(steps + 1)]
    got = sample(
        model,
        shape,
        schedule=LINEAR,
        steps=steps,
        spacing=spacing,
        variance_type=variance_type,
        prediction_type={"sample": "x_start", "v_prediction": "v"}.get(prediction_type, "epsilon"),
        noise=lambda draw, _: noise[draw],
        dtype=torch.float64,
    )
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
