"""The probability flow's density of Gaussians, whose exact one is known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

import fastdiff
from fastdiff.likelihood import flow_log_density, ode_bits_per_dim
from fastdiff.models import UNet
from fastdiff.schedules import NoiseSchedule
from tests.likelihood.gaussian_model import GaussianModel, levels
from tests.models.unets import SMALL, randomised

LINEAR = NoiseSchedule.linear(1000)
MEAN = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
COVARIANCE = torch.tensor(
    [[0.09, 0.03, 0.0], [0.03, 0.04, -0.01], [0.0, -0.01, 0.02]], dtype=torch.float64
)
MODEL = GaussianModel(LINEAR, MEAN, COVARIANCE)


# Down to where nothing is left that N(0, 1) does not say.
EVEN_SNR = NoiseSchedule.from_log_snr(np.linspace(9, -20, 1000))


def x_at_first_level(count: int, model: GaussianModel = MODEL) -> Tensor:
    a = float(model.schedule.alphas_cumprod[0])
    noise = torch.randn(count, 3, 1, generator=torch.Generator().manual_seed(1)).double()
    return math.sqrt(a) * model.draw(count) + math.sqrt(1 - a) * noise


def error(schedule: NoiseSchedule, **options: Any) -> float:
    """The largest of 16, in nats, of densities of about 3."""
    model = GaussianModel(schedule, MEAN, COVARIANCE)
    x = x_at_first_level(16, model)
    found = flow_log_density(model, x, schedule=schedule, num_probes=None, **options)
    return float(np.abs(found.log_density[:, 0] - model.log_density_at_first_level(x)).max())


def test_the_density_is_the_exact_one() -> None:
    """The linear schedule's first steps are long ones: half of the log-SNR changes by 0.4."""
    assert error(LINEAR) < 1e-2
    assert error(EVEN_SNR) < 2e-4


def test_the_error_falls_with_the_square_of_the_steps() -> None:
    errors = [error(EVEN_SNR, steps=steps) for steps in (15, 30, 60)]
    for coarse, fine in pairwise(errors):
        assert 2.5 < coarse / fine < 6.5


@pytest.mark.parametrize("prediction_type", ["x_start", "v"])
def test_whatever_is_predicted(prediction_type: str) -> None:
    from fastdiff.diffusion import convert

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        return convert(LINEAR, MODEL(x_t, t), x_t, t, source="epsilon", target=prediction_type)

    x = x_at_first_level(4)
    options: dict[str, Any] = {"schedule": LINEAR, "num_probes": None, "steps": 60}
    found = flow_log_density(model, x, prediction_type=prediction_type, **options)
    wanted = flow_log_density(MODEL, x, **options)
    np.testing.assert_allclose(found.log_density, wanted.log_density, rtol=1e-9)


def test_hutchinsons_estimate_is_unbiased() -> None:
    """Over so many probes that the error bar is a hundredth of a nat."""
    x = x_at_first_level(2)
    options: dict[str, Any] = {"schedule": LINEAR, "steps": 30}
    exact = flow_log_density(MODEL, x, num_probes=None, **options).log_density[:, 0]
    drawn = flow_log_density(MODEL, x, num_probes=400, **options).log_density
    error = drawn.std(1, ddof=1) / math.sqrt(400)
    assert (error > 1e-4).all()
    assert (np.abs(drawn.mean(1) - exact) < 4 * error).all()


def test_the_two_parts_bound_the_discrete_likelihood() -> None:
    """One dimension: P(level) by quadrature of density times decoder, the model's own."""
    schedule = NoiseSchedule.linear(1000)
    model = GaussianModel(schedule, MEAN[:1], COVARIANCE[:1, :1])
    images = levels(model.draw(400, seed=5))
    found = ode_bits_per_dim(model, images, schedule=schedule, steps=200, dtype=torch.float64)
    a = float(schedule.alphas_cumprod[0])
    grid = np.linspace(-3, 3, 20_001)
    p = scipy.stats.norm.pdf(grid, math.sqrt(a) * 0.2, math.sqrt(a * 0.09 + 1 - a))
    eps = model(torch.from_numpy(grid).view(-1, 1, 1), torch.zeros(len(grid)).long()).view(-1)
    x_0 = (grid - math.sqrt(1 - a) * eps.numpy()) / math.sqrt(a)
    # The reverse process's variance at t = 0 is that of t = 1.
    scale = math.sqrt(schedule.posterior_variance[1])
    exact = []
    for level in images.view(-1).double().div(127.5).sub(1).tolist():
        inside = scipy.stats.norm.cdf(level + 1 / 255, x_0.clip(-1, 1), scale)
        inside = inside - scipy.stats.norm.cdf(level - 1 / 255, x_0.clip(-1, 1), scale)
        exact.append(-math.log2(scipy.integrate.trapezoid(p * inside, grid)))
    gap = found.total.mean() - np.mean(exact)
    # Jensen's gap: above in the mean, and not by far.
    assert 0 < gap < 0.5
    np.testing.assert_allclose(found.total, found.latent + found.decoder)
    assert np.isnan(found.standard_error).all() and 200 < found.num_evaluations <= 402


def test_a_frozen_unet_under_no_grad() -> None:
    """The gradients it takes are those by x_t alone."""
    torch.manual_seed(0)
    unet = randomised(UNet(**SMALL)).requires_grad_(False)
    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    options: dict[str, Any] = {"schedule": LINEAR, "steps": 3, "num_probes": 2}
    with torch.no_grad():
        found = ode_bits_per_dim(unet, images, **options)
        alone = ode_bits_per_dim(unet, images[1:], sample_index=1, **options)
    assert np.isfinite(found.total).all() and (found.standard_error > 0).all()
    np.testing.assert_allclose(alone.total, found.total[1:], rtol=1e-4)
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_what_does_not_fit_is_told() -> None:
    x = x_at_first_level(1)
    with pytest.raises(ValueError, match=r"in 1\.\.999, got 1000"):
        flow_log_density(MODEL, x, schedule=LINEAR, steps=1000)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        flow_log_density(MODEL, x, schedule=LINEAR, num_probes=0)
    with pytest.raises(ValueError, match="without a signal"):
        flow_log_density(MODEL, x, schedule=LINEAR.rescale_zero_terminal_snr())
    with pytest.raises(TypeError, match=r"torch\.float64"):
        ode_bits_per_dim(MODEL, x, schedule=LINEAR)


def test_both_figures_of_a_digit_are_near() -> None:
    """By the bundled model, which predicts v under a cosine schedule; the flow's is the lower."""
    model = fastdiff.load()
    drawn = model.sample(2, steps=30, seed=1)
    digits = ((drawn + 1) * 127.5).round().clamp(0, 255).byte()
    labels = torch.tensor([0, 1])
    bound = model.bits_per_dim(digits, class_labels=labels, timesteps=101)
    flow = model.ode_bits_per_dim(digits, class_labels=labels, steps=60, num_probes=2)
    ratio = flow.total / bound.total
    assert ((ratio > 0.75) & (ratio < 1.1)).all(), (flow.total, bound.total)
