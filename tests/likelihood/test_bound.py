"""bits_per_dim: sums, the Gaussian whose likelihood is known, estimates from some timesteps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import fastdiff
from fastdiff.likelihood import RateDistortion, bits_per_dim
from fastdiff.likelihood.images import BOUND_STREAM
from fastdiff.ops import philox_normal
from fastdiff.schedules import NoiseSchedule
from tests.likelihood.gaussian_model import GaussianModel, levels

T = 40
SHORT = NoiseSchedule.linear(T, 1e-3, 0.3)
MEAN = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
COVARIANCE = torch.diag(torch.tensor([0.09, 0.04, 0.02], dtype=torch.float64))


def wavy(x: Tensor, t: Tensor) -> Tensor:
    """A model without a matrix product: a sample's figures do not depend on its batch."""
    return 0.9 * x + 0.1 * torch.sin(3 * x + t.view(-1, *[1] * (x.ndim - 1)))


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 2, 3, 4), generator=generator, dtype=torch.uint8)


def test_every_term_by_the_papers_formulas() -> None:
    """A loop over t from the betas alone, in float64, as Ho's and guided-diffusion's."""
    betas = np.linspace(1e-3, 0.3, T)
    abar = np.cumprod(1 - betas)
    found = bits_per_dim(wavy, images(), schedule=SHORT, seed=3, sample_index=7)
    x_0 = images().double() / 127.5 - 1
    index = torch.arange(7, 13)
    small = betas * (1 - np.append(1, abar[:-1])) / (1 - abar)
    variances = np.append(small[1], small[1:])
    for t in (0, 1, 17, T - 1):
        z = philox_normal(x_0.shape, 3, sample_index=index, draw=t, stream=BOUND_STREAM).double()
        x_t = math.sqrt(abar[t]) * x_0 + math.sqrt(1 - abar[t]) * z
        eps = wavy(x_t, torch.full((6,), t))
        guess = ((x_t - math.sqrt(1 - abar[t]) * eps) / math.sqrt(abar[t])).clamp(-1, 1)
        before = abar[t - 1] if t else 1.0
        c_0 = math.sqrt(before) * betas[t] / (1 - abar[t])
        mean = c_0 * guess + math.sqrt(1 - betas[t]) * (1 - before) / (1 - abar[t]) * x_t
        if t:
            nats = (c_0 * (x_0 - guess)) ** 2 / (2 * variances[t])
        else:
            cdf = scipy.stats.norm(mean, math.sqrt(variances[0])).cdf
            high = np.where(x_0 > 0.999, 1, cdf(x_0 + 1 / 255))
            low = np.where(x_0 < -0.999, 0, cdf(x_0 - 1 / 255))
            nats = -torch.from_numpy(np.log(np.maximum(high - low, 1e-12)))
        expected = nats.flatten(1).mean(1) / math.log(2)
        np.testing.assert_allclose(found.vb[:, t], expected, rtol=2e-3, atol=1e-4)
        mse = (guess - x_0).square().flatten(1).mean(1)
        np.testing.assert_allclose(found.x_start_mse[:, t], mse, rtol=1e-3, atol=1e-6)
        implied = (x_t - math.sqrt(abar[t]) * guess) / math.sqrt(1 - abar[t])
        mse = (implied - z).square().flatten(1).mean(1)
        np.testing.assert_allclose(found.epsilon_mse[:, t], mse, rtol=1e-3, atol=1e-6)
    a = abar[-1]
    prior = (a * x_0**2 - a - math.log(1 - a)) / 2 / math.log(2)
    np.testing.assert_allclose(found.prior, prior.flatten(1).mean(1), rtol=1e-9)


def test_the_codelength_is_the_sum_of_its_terms() -> None:
    found = bits_per_dim(wavy, images(), schedule=SHORT)
    assert found.vb.shape == (6, T) and not found.standard_error.any()
    np.testing.assert_allclose(found.total, found.prior + found.vb.sum(1), rtol=1e-12)


def test_the_prior_of_the_linear_schedule() -> None:
    found = bits_per_dim(
        wavy, images(), schedule=NoiseSchedule.linear(1000), timesteps=3, batch_size=4
    )
    assert ((found.prior > 1e-6) & (found.prior < 3e-5)).all()


@pytest.mark.parametrize("timesteps", [None, 9])
def test_an_images_figures_do_not_depend_on_its_batch(timesteps: int | None) -> None:
    options: dict[str, Any] = {"schedule": SHORT, "seed": 5, "timesteps": timesteps}
    whole = bits_per_dim(wavy, images(), sample_index=3, batch_size=1000, **options)
    alone = bits_per_dim(wavy, images()[4:5], sample_index=7, batch_size=7, **options)
    np.testing.assert_array_equal(alone.timesteps, whole.timesteps[4:5])
    np.testing.assert_array_equal(alone.vb, whole.vb[4:5])
    np.testing.assert_array_equal(alone.total, whole.total[4:5])


def test_the_bound_is_above_the_likelihood_and_tight_as_T_grows() -> None:
    """Independent Gaussian dimensions: a level's probability, and the cost of x_t at t = 0 by the
    exact density, are known; the terms above t = 0 tend to the latter like 1 / T."""
    gaps = []
    for steps in (50, 200, 800):
        schedule = NoiseSchedule.from_log_snr(np.linspace(9, -16, steps))
        model = GaussianModel(schedule, MEAN, COVARIANCE)
        x = levels(model.draw(2000, seed=2))
        found = bits_per_dim(
            model, x, schedule=schedule, clip=False, dtype=torch.float64, batch_size=20_000
        )
        x_0, mean = x.double() / 127.5 - 1, MEAN.view(3, 1)
        variance = COVARIANCE.diagonal().view(3, 1)
        normal = scipy.stats.norm(mean, variance.sqrt())
        high = np.where(x == 255, 1, normal.cdf(x_0 + 1 / 255))
        low = np.where(x == 0, 0, normal.cdf(x_0 - 1 / 255))
        exact = -np.log2(high - low).mean((1, 2))
        error = (found.total - exact).std() / math.sqrt(len(exact))
        assert (found.total - exact).mean() > 5 * error

        a = float(schedule.alphas_cumprod[0])
        of_x_t = a * variance + 1 - a
        square = (math.sqrt(a) * (x_0 - mean)) ** 2 + 1 - a
        nats = (of_x_t / (1 - a)).log() + square / of_x_t - 1
        latent = nats.mean((1, 2)).numpy() / 2 / math.log(2)
        gap = found.total - found.vb[:, 0] - latent
        gaps.append((gap.mean(), gap.std() / math.sqrt(len(gap))))
    for (coarse, _), (fine, error) in pairwise(gaps):
        assert coarse / fine == pytest.approx(4, abs=1) and fine > 5 * error
    assert gaps[-1][0] < 0.1


def test_an_estimate_from_some_timesteps_is_unbiased_and_knows_its_error() -> None:
    whole = bits_per_dim(wavy, images(1), schedule=SHORT).total[0]
    # The noise stays that of the image: only which timesteps are visited changes, by the seed of
    # the draw; so the terms are computed once and drawn from 4000 times.
    from fastdiff.likelihood.timesteps import some_timesteps

    terms = bits_per_dim(wavy, images(1), schedule=SHORT)
    visits = some_timesteps(T, 11, 0, torch.arange(4000))
    estimate, error = visits.total(terms.vb[0][visits.timesteps])
    estimate += terms.prior
    spread = estimate.std()
    assert spread > 1e-3
    assert abs(estimate.mean() - whole) < 4 * spread / math.sqrt(4000)
    # The squared error bars are an unbiased estimate of the variance.
    assert np.mean(error**2) == pytest.approx(spread**2, rel=0.1)
    drawn = bits_per_dim(wavy, images(1), schedule=SHORT, timesteps=11)
    assert drawn.total == pytest.approx(estimate[:1]) and drawn.standard_error == error[:1]


@pytest.mark.parametrize(("steps", "count"), [(4, 3), (5, 3), (40, 39), (1000, 21), (41, 39)])
def test_timesteps_are_drawn_apart_and_in_range(steps: int, count: int) -> None:
    from fastdiff.likelihood.timesteps import some_timesteps

    visits = some_timesteps(steps, count, 1, torch.arange(50))
    assert visits.sizes is not None and (visits.sizes >= 2).all()
    assert visits.sizes.sum() == steps - 1
    for row in visits.timesteps:
        assert row[0] == 0 and len(set(row)) == count and row.max() < steps


def test_rate_and_distortion() -> None:
    found = bits_per_dim(wavy, images(), schedule=SHORT)
    curve = found.rate_distortion()
    for t in (0, 5, T - 1):
        sent = found.prior + found.vb[:, t + 1 :].sum(1)
        assert curve.rate[t] == pytest.approx(sent.mean())
        rms = math.sqrt(found.x_start_mse[:, t].mean()) * 127.5
        assert curve.distortion[t] == pytest.approx(rms)
    assert curve.rate[0] + found.vb[:, 0].mean() == pytest.approx(found.total.mean())
    with pytest.raises(ValueError, match="every timestep"):
        bits_per_dim(wavy, images(), schedule=SHORT, timesteps=3).rate_distortion()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_curve_is_drawn(tmp_path: Any, ending: str) -> None:
    path = tmp_path / f"curve.{ending}"
    RateDistortion(np.arange(3), np.array([2.0, 1, 0]), np.array([1.0, 20, 60])).save(path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml") and len([*tmp_path.iterdir()]) == 1


def test_progress_is_told_in_calls() -> None:
    told: list[tuple[int, int]] = []
    bits_per_dim(
        wavy, images(2), schedule=SHORT, batch_size=50, progress=lambda *done: told.append(done)
    )
    assert told == [(50, 80), (80, 80)]


def test_the_bundled_model() -> None:
    """A blank and a noisy image: all but nothing, and far too much for what it knows."""
    model = fastdiff.load()
    generator = torch.Generator().manual_seed(0)
    pair = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    pair[1] = torch.randint(0, 256, (1, 28, 28), generator=generator)
    found = model.bits_per_dim(pair, class_labels=torch.tensor([1, 1]), timesteps=15)
    assert found.total[0] < 2.5 and found.total[1] > 8


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"images": torch.zeros(2, 1, 4, 4)}, TypeError, "give uint8"),
        ({"class_labels": torch.zeros(5)}, ValueError, r"class_labels must be \[6\]"),
        ({"sample_index": torch.zeros(5)}, ValueError, r"sample_index must be \[6\]"),
        ({"timesteps": 4}, ValueError, "odd and in 3..39, got 4"),
        ({"timesteps": 41}, ValueError, "odd and in 3..39, got 41"),
        ({"variance_type": "learned"}, ValueError, "model output of 4 channels"),
    ],
)
def test_what_does_not_fit_is_told(
    changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    arguments: dict[str, Any] = {"images": images(), "schedule": SHORT} | changed
    with pytest.raises(error, match=words):
        bits_per_dim(wavy, **arguments)
