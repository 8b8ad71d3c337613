"""The terms of the variational bound against closed forms, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from fastdiff.diffusion import Gaussian, p_mean_variance, q_mean_variance, q_sample
from fastdiff.losses import (
    bound_term,
    discretized_gaussian_log_likelihood,
    normal_kl,
    prior_term,
    tanh_normal_cdf,
)
from fastdiff.schedules import NoiseSchedule

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
LINEAR = NoiseSchedule.linear(1000)


def test_kl_is_torchs() -> None:
    m, v, n, w = torch.randn(4, 50, dtype=torch.float64)
    p, q = (torch.distributions.Normal(a, (b / 2).exp()) for a, b in ((m, v), (n, w)))
    torch.testing.assert_close(normal_kl(m, v, n, w), torch.distributions.kl_divergence(p, q))
    torch.testing.assert_close(normal_kl(m, v, 0.0, 0.0), normal_kl(m, v, 0 * m, 0 * m))
    assert not normal_kl(m, v, m, v).any()
    with pytest.raises(ValueError, match="at least is a tensor"):
        normal_kl(0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("mean", [-1.0, -0.3, 0.0, 0.98])
@pytest.mark.parametrize("scale", [0.003, 0.05, 1.0])
def test_likelihood_is_the_integral(mean: float, scale: float) -> None:
    found = discretized_gaussian_log_likelihood(
        LEVELS, torch.tensor(mean, dtype=torch.float64), torch.tensor(scale).double().log()
    )
    edges = (np.arange(1, 256) - 0.5) / 127.5 - 1
    cdf = np.concatenate([[0], scipy.stats.norm.cdf(edges, mean, scale), [1]])
    expected = np.log(np.maximum(np.diff(cdf), 1e-12))
    # A probability near 1e-12 is a difference of numbers near 1, and has four digits.
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_all_levels_together_are_certain() -> None:
    for cdf in (torch.special.ndtr, tanh_normal_cdf):
        p = discretized_gaussian_log_likelihood(
            LEVELS, torch.zeros(256).double(), torch.full((256,), -2.0).double(), cdf=cdf
        ).exp()
        assert abs(float(p.sum()) - 1) < 1e-9


def test_hos_approximation_is_near() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    assert (tanh_normal_cdf(x) - torch.special.ndtr(x)).abs().max() < 4e-4


def test_a_perfect_model_pays_nothing_but_the_decoder() -> None:
    x_start = LEVELS[torch.randint(256, (4, 3, 6, 6), generator=torch.Generator().manual_seed(0))]
    t, noise = torch.tensor([0, 1, 500, 999]), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    x_t = q_sample(LINEAR, x_start, t, noise)
    p = p_mean_variance(LINEAR, noise, x_t, t, clip=False)
    term = bound_term(LINEAR, x_start, x_t, t, p)
    assert term[1:].abs().max() < 1e-9
    expected = -discretized_gaussian_log_likelihood(
        x_start[0], p.mean[0], 0.5 * p.log_variance[0]
    ).mean() / math.log(2)
    torch.testing.assert_close(term[0], expected)


def test_a_shifted_model_pays_its_square() -> None:
    x_start, x_t = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([7, 300, 900])
    variance = torch.tensor(LINEAR.posterior_variance[t.numpy()]).view(-1, 1, 1, 1)
    p = p_mean_variance(LINEAR, x_start, x_t, t, prediction_type="x_start", clip=False)
    shifted = Gaussian(p.mean + 0.01, p.variance, p.log_variance)
    expected = (1e-4 / (2 * variance) / math.log(2)).flatten()
    found = bound_term(LINEAR, x_start, x_t, t, shifted)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_the_prior_term() -> None:
    """About 1e-5 bits a dimension for the linear schedule (Ho et al. 2020, section 4)."""
    x_start = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    a = LINEAR.alphas_cumprod[-1]
    kl = (-1 - math.log(1 - a) + (1 - a) + a * x_start**2) / 2
    torch.testing.assert_close(prior_term(LINEAR, x_start), kl.mean((1, 2, 3)) / math.log(2))
    assert 1e-6 < float(prior_term(LINEAR, x_start).max()) < 2e-5


def test_the_gaussian_of_q() -> None:
    x_start, t = torch.randn(3, 2, 4, dtype=torch.float64), torch.tensor([0, 10, 999])
    q = q_mean_variance(LINEAR, x_start, t)
    zero = torch.zeros_like(x_start)
    torch.testing.assert_close(q.mean, q_sample(LINEAR, x_start, t, zero))
    spread = q_sample(LINEAR, zero, t, torch.ones_like(zero)) ** 2
    torch.testing.assert_close(q.variance.expand_as(spread), spread)
    torch.testing.assert_close(q.log_variance, q.variance.log())
