"""Where fastdiff and diffusers part on purpose: each step of both against the papers' formula.

diffusers' DDIM takes t - T // steps for the timestep after t (huggingface/diffusers#11347, #12633),
which is the one that the loop visits next only where the spacing is leading, or trailing with a
number of steps that divides T; and its fixed_large_log is NaN (huggingface/diffusers#14569). A test
that fails since theirs was mended may go.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastdiff.samplers import sample_progressive
from fastdiff.schedules import NoiseSchedule, timesteps

T = 1000
LINEAR = NoiseSchedule.linear(T)
SHAPE = (2, 1, 4, 4)


def level(t: int) -> float:
    """alphas_cumprod, 1 before the first timestep."""
    return float(LINEAR.alphas_cumprod[t]) if t >= 0 else 1.0


def ddim(x: Tensor, eps: Tensor, a: float, before: float) -> Tensor:
    """Song et al. 2021, eq. 12 with sigma = 0."""
    x_start = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
    return math.sqrt(before) * x_start + math.sqrt(1 - before) * eps


def posterior_mean(x: Tensor, eps: Tensor, a: float, before: float) -> Tensor:
    """Ho et al. 2020, eq. 7, of the two levels."""
    x_start = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
    beta = 1 - a / before
    return (
        math.sqrt(before) * beta / (1 - a) * x_start
        + math.sqrt(1 - beta) * (1 - before) / (1 - a) * x
    )


def model(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x + (t.to(x) / 150).view(-1, 1, 1, 1))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only_at_the_start(draw: int, sample_index: Tensor) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=generator(0)) * (draw == 0)


@pytest.mark.parametrize(
    ("spacing", "steps"), [("linspace", 10), ("linspace", 50), ("trailing", 7), ("trailing", 30)]
)
def test_ddim_steps_to_the_timestep_that_comes_next(spacing: str, steps: int) -> None:
    from diffusers import DDIMScheduler

    peer = DDIMScheduler(T, timestep_spacing=spacing, clip_sample=False)
    peer.alphas_cumprod = torch.tensor(LINEAR.alphas_cumprod)
    peer.set_timesteps(steps)
    visited = timesteps(T, steps, spacing).tolist()
    assert peer.timesteps.tolist() == visited
    parted = 0
    for done in sample_progressive(
        model, SHAPE, schedule=LINEAR, sampler="ddim", steps=steps, spacing=spacing, clip=False,
        noise=only_at_the_start, dtype=torch.float64,
    ):  # fmt: skip
        eps, t = model(done.x_t, torch.full((2,), done.t)), done.t
        after = [*visited, -1][done.step + 1]
        right = ddim(done.x_t, eps, level(t), level(after))
        torch.testing.assert_close(done.x_prev, right, rtol=1e-9, atol=1e-9)
        theirs = peer.step(eps, t, done.x_t).prev_sample
        wrong = ddim(done.x_t, eps, level(t), level(t - T // steps))
        torch.testing.assert_close(theirs, wrong, rtol=1e-9, atol=1e-9)
        parted += after != max(t - T // steps, -1)
    assert parted > steps // 4


def test_fixed_large_log_is_fixed_large() -> None:
    """Its own name says what was meant: the variance is beta (Ho et al. 2020, section 3.2)."""
    from diffusers import DDPMScheduler

    peer = DDPMScheduler(T, variance_type="fixed_large_log", clip_sample=False)
    peer.alphas_cumprod = torch.tensor(LINEAR.alphas_cumprod)
    noise = torch.stack(
        [torch.randn(SHAPE, dtype=torch.float64, generator=generator(i)) for i in range(2)]
    )
    steps = sample_progressive(
        model, SHAPE, schedule=LINEAR, variance_type="fixed_large", clip=False,
        noise=lambda draw, _: noise[min(draw, 1)], dtype=torch.float64,
    )  # fmt: skip
    done = next(steps)
    eps, t = model(done.x_t, torch.full((2,), done.t)), done.t
    assert peer.step(eps, t, done.x_t).prev_sample.isnan().all()
    mean = posterior_mean(done.x_t, eps, level(t), level(t - 1))
    right = mean + math.sqrt(LINEAR.betas[t]) * noise[1]
    torch.testing.assert_close(done.x_prev, right, rtol=1e-9, atol=1e-9)
