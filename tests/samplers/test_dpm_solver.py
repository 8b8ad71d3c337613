"""DPM-Solver++(2M) against the exact ODE, the paper's algorithm written out, and diffusers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.diffusion import PREDICTION_TYPES
from fastdiff.samplers import sample, sample_progressive
from fastdiff.schedules import SPACINGS, NoiseSchedule, timesteps
from tests.samplers.gaussian_data import best_model, signal_gain

T = 1000
LINEAR = NoiseSchedule.linear(T)
ONE = torch.ones(1, 1, dtype=torch.float64)


def gain_by_the_paper(schedule: NoiseSchedule, visited: list[int]) -> float:
    """Lu et al. 2022, Algorithm 2, for one number; the last step just takes x_0."""
    x, before, h_before = 1.0, 0.0, 0.0
    a = [float(schedule.alphas_cumprod[t]) for t in visited]
    alpha, sigma = [math.sqrt(v) for v in a], [math.sqrt(1 - v) for v in a]
    lam = [math.log(p / q) for p, q in zip(alpha, sigma, strict=True)]
    for i in range(len(a) - 1):
        x_0 = signal_gain(a[i]) * x
        h = lam[i + 1] - lam[i]
        d = x_0
        if i > 0:
            r = h_before / h
            d = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (math.exp(-h) - 1) * d
        before, h_before = x_0, h
    return signal_gain(a[-1]) * x


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_the_papers_algorithm(steps: int, spacing: str, prediction_type: str) -> None:
    got = sample(
        best_model(LINEAR, prediction_type),
        (1, 1),
        schedule=LINEAR,
        sampler="dpm++",
        steps=steps,
        spacing=spacing,
        prediction_type=prediction_type,
        clip=False,
        noise=ONE,
        dtype=torch.float64,
    )
    wanted = gain_by_the_paper(LINEAR, timesteps(T, steps, spacing).tolist())
    assert float(got) == pytest.approx(wanted, rel=1e-8)


def test_second_order_convergence_to_the_exact_ode() -> None:
    """In even steps of lambda; for Gaussian data the ODE scales x by the marginal's deviation."""
    errors = []
    for steps in (80, 160, 320):
        a = 1 / (1 + np.exp(-2 * np.linspace(2.0, -4.0, steps + 1)))
        schedule = NoiseSchedule.from_betas(1 - a / np.append(1.0, a[:-1]))
        *_, last = sample_progressive(
            best_model(schedule),
            (1, 1),
            schedule=schedule,
            sampler="dpm++",
            clip=False,
            noise=ONE,
            dtype=torch.float64,
        )
        deviation = np.sqrt(0.25 * a + 1 - a)
        errors.append(abs(float(last.x_t) / (deviation[0] / deviation[-1]) - 1))
    orders = [math.log2(c / f) for c, f in pairwise(errors)]
    assert min(orders) > 1.8, (orders, errors)
    assert errors[-1] < 1e-3


def test_twenty_steps_beat_ddims_fifty() -> None:
    def variance(sampler: str, steps: int) -> float:
        x = sample(
            best_model(LINEAR),
            (1, 1),
            schedule=LINEAR,
            sampler=sampler,
            steps=steps,
            clip=False,
            noise=ONE,
            dtype=torch.float64,
        )
        return float(x) ** 2

    assert abs(variance("dpm++", 20) - 0.25) < abs(variance("ddim", 50) - 0.25)


def wavy(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * torch.sin(x + (t.to(x) / 150).view(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 10, 20])
def test_diffusers_step_by_step(steps: int, spacing: str, prediction_type: str) -> None:
    """Theirs computes in float32: hence a gentle model, and what float32 leaves of it."""
    from diffusers import DPMSolverMultistepScheduler

    peer = DPMSolverMultistepScheduler(T, prediction_type=prediction_type)
    visited = timesteps(T, steps, spacing)
    peer.set_timesteps(timesteps=visited.tolist())
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    got = sample(
        wavy,
        x.shape,
        schedule=LINEAR,
        sampler="dpm++",
        steps=steps,
        spacing=spacing,
        clip=False,
        prediction_type={"sample": "x_start", "v_prediction": "v"}.get(prediction_type, "epsilon"),
        noise=x,
    )
    for t in peer.timesteps:
        x = peer.step(wavy(x, t.expand(2)), t, x).prev_sample
    scale = max(float(x.abs().max()), 1.0)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-5 * scale)


def test_eta_is_refused() -> None:
    with pytest.raises(ValueError, match="eta belongs to sampler 'ddim'; 'dpm\\+\\+' takes none"):
        sample(wavy, (1, 2), schedule=LINEAR, sampler="dpm++", steps=4, eta=0.5)
