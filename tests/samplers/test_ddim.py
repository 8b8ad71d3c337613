"""DDIM and its inverse against their closed forms and diffusers' schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastdiff.diffusion import PREDICTION_TYPES, DynamicThresholding
from fastdiff.samplers import ddim_invert, sample, sample_progressive
from fastdiff.schedules import SPACINGS, NoiseSchedule, timesteps
from tests.samplers.gaussian_data import (
    best_model,
    levels,
    noise_gain,
    sampled_variance,
    signal_gain,
)

T = 1000
LINEAR = NoiseSchedule.linear(T)
OURS = {"epsilon": "epsilon", "sample": "x_start", "v_prediction": "v"}


def closed_form(schedule: NoiseSchedule, visited: list[int], eta: float) -> float:
    variance = 1.0
    for a, before in levels(schedule, visited):
        sigma = eta * math.sqrt((1 - before) / (1 - a) * (1 - a / before))
        gain = math.sqrt(before) * signal_gain(a)
        gain += math.sqrt(max(1 - before - sigma**2, 0)) * noise_gain(a)
        variance = gain**2 * variance + sigma**2
    return variance


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_strided_variance_is_the_closed_form(steps: int, spacing: str, eta: float) -> None:
    got = sampled_variance(LINEAR, steps, sampler="ddim", steps=steps, spacing=spacing, eta=eta)
    wanted = closed_form(LINEAR, timesteps(T, steps, spacing).tolist(), eta)
    assert got == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_thousand_steps_give_the_datas_variance(eta: float) -> None:
    got = sampled_variance(LINEAR, T, sampler="ddim", eta=eta)
    assert got == pytest.approx(closed_form(LINEAR, list(range(T - 1, -1, -1)), eta), rel=1e-9)
    assert got == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize("rederive_eps", [True, False])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule.cosine(T)])
def test_every_prediction_type_gives_the_same_variance(
    schedule: NoiseSchedule, prediction_type: str, rederive_eps: bool
) -> None:
    got = sampled_variance(
        schedule,
        20,
        sampler="ddim",
        steps=20,
        eta=0.5,
        prediction_type=prediction_type,
        rederive_eps=rederive_eps,
    )
    wanted = closed_form(schedule, timesteps(T, 20).tolist(), 0.5)
    assert got == pytest.approx(wanted, rel=1e-7)


def test_eta_one_is_ancestral_sampling_unclipped() -> None:
    ddim = sampled_variance(LINEAR, 50, sampler="ddim", steps=50, eta=1.0)
    assert ddim == pytest.approx(sampled_variance(LINEAR, 50, sampler="ddpm", steps=50), rel=1e-10)


def wavy(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x + (t.to(x) / 150).view(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("rederive_eps", [True, False])
@pytest.mark.parametrize("prediction_type", OURS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("thresholding", [False, True])
def test_diffusers_step_by_step(
    thresholding: bool, spacing: str, prediction_type: str, rederive_eps: bool, eta: float
) -> None:
    """Clipped both ways, by bound and by percentile, in float64."""
    from diffusers import DDIMScheduler

    peer = DDIMScheduler(
        T,
        timestep_spacing=spacing,
        prediction_type=prediction_type,
        thresholding=thresholding,
        sample_max_value=3.0,
    )
    peer.alphas_cumprod = torch.tensor(LINEAR.alphas_cumprod)
    peer.set_timesteps(20)
    noise = torch.randn(
        21, 2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    x = noise[0]
    for k, t in enumerate(peer.timesteps):
        x = peer.step(
            wavy(x, t.expand(2)),
            t,
            x,
            eta=eta,
            use_clipped_model_output=rederive_eps,
            variance_noise=noise[k + 1],
        ).prev_sample
    got = sample(
        wavy,
        x.shape,
        schedule=LINEAR,
        sampler="ddim",
        steps=20,
        spacing=spacing,
        eta=eta,
        prediction_type=OURS[prediction_type],
        rederive_eps=rederive_eps,
        clip=DynamicThresholding(max_value=3.0) if thresholding else True,
        noise=lambda draw, _: noise[draw],
        dtype=torch.float64,
    )
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_inversion_is_diffusers_step_by_step() -> None:
    """For epsilon alone: theirs reads v and x_0 at another level than their own, and x_0 as NaN."""
    from diffusers import DDIMInverseScheduler

    peer = DDIMInverseScheduler(T, clip_sample=False)
    peer.alphas_cumprod = torch.tensor(LINEAR.alphas_cumprod)
    peer.set_timesteps(20)
    x_start = torch.linspace(-1, 1, 32, dtype=torch.float64).view(2, 1, 4, 4)
    x = x_start
    for t in peer.timesteps:
        x = peer.step(wavy(x, t.expand(2)), t, x).prev_sample
    got = ddim_invert(wavy, x_start, schedule=LINEAR, steps=20, dtype=torch.float64)
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_inversion_goes_up_the_exact_ode_and_back(prediction_type: str) -> None:
    """x_T = x_0 sqrt(v_T / v_0) for Gaussian data; both errors halve with the step."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
    schedule = NoiseSchedule.linear(8000, 1e-4 / 8, 0.02 / 8)
    model, a = best_model(schedule, prediction_type), schedule.alphas_cumprod[-1]
    exact = x * math.sqrt((0.25 * a + 1 - a) / 0.25)
    errors = []
    for steps in (500, 1000, 2000):
        options = {
            "schedule": schedule,
            "steps": steps,
            "spacing": "linspace",
            "prediction_type": prediction_type,
            "dtype": torch.float64,
        }
        latent = ddim_invert(model, x, **options)
        back = sample(model, x.shape, sampler="ddim", clip=False, noise=latent, **options)
        errors.append([float((latent - exact).abs().max()), float((back - x).abs().max())])
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse[0] / fine[0] < 2.3
        assert coarse[1] / fine[1] > 1.7
    assert errors[-1][1] < 5e-3


def test_no_noise_is_drawn_at_eta_zero() -> None:
    drawn = []

    def noise(draw: int, sample_index: Tensor) -> Tensor:
        drawn.append(draw)
        return torch.ones(2, 3)

    for eta, wanted in ((0.0, [0]), (0.5, [0, 1, 2, 3, 4])):
        drawn.clear()
        sample(wavy, (2, 3), schedule=LINEAR, sampler="ddim", steps=4, eta=eta, noise=noise)
        assert drawn == wanted


def test_start_continues_from_a_state_on_the_way() -> None:
    options = {"schedule": LINEAR, "sampler": "ddim", "steps": 10}
    history = list(sample_progressive(wavy, (2, 3), **options))
    got = sample(wavy, (2, 3), start=history[4].t, noise=history[4].x_t, **options)
    assert torch.equal(got, history[-1].x_prev)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_bad_eta_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        sample(wavy, (2, 3), schedule=LINEAR, sampler="ddim", steps=4, eta=eta)
