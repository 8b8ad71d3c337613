"""The terms of the variational bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.diffusion import Gaussian, q_mean_variance, q_posterior_mean_variance
from fastdiff.schedules import NoiseSchedule

LEAST_PROBABILITY = 1e-12


def normal_kl(
    mean: Tensor | float,
    log_variance: Tensor | float,
    other_mean: Tensor | float,
    other_log_variance: Tensor | float,
) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) in nats, element by element.

    Arguments broadcast. Raises ValueError unless one of them is a tensor.
    """
    given = (mean, log_variance, other_mean, other_log_variance)
    like = next((value for value in given if isinstance(value, Tensor)), None)
    if like is None:
        raise ValueError("normal_kl takes four numbers of which one at least is a tensor.")
    m1, v1, m2, v2 = (
        value if isinstance(value, Tensor) else like.new_tensor(value) for value in given
    )
    return 0.5 * (v2 - v1 - 1 + torch.exp(v1 - v2) + (m1 - m2).square() * torch.exp(-v2))


def normal_cdf(x: Tensor) -> Tensor:
    """The standard normal's distribution function, with all digits far below 0.

    torch.special.ndtr has none there in float32.
    """
    return 0.5 * torch.special.erfc(-x * math.sqrt(0.5))


def tanh_normal_cdf(x: Tensor) -> Tensor:
    """The standard normal's distribution function by a tanh, within 4e-4, as in Ho's code."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(
    x: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    *,
    cdf: Callable[[Tensor], Tensor] = normal_cdf,
) -> Tensor:
    """Log probability in nats that N(mean, exp(log_scale)^2) gives each of 256 levels.

    Ho et al. 2020, eq. 13: the levels lie 2/255 apart in [-1, 1], those at the ends take all that
    is beyond them. A probability below 1e-12 counts as that.

    Args:
        x: [N, ...] of such levels.
        mean, log_scale: as x, or broadcastable to it.
        cdf: the standard normal's distribution function; tanh_normal_cdf for Ho's numbers.
    """
    centred, per_scale = x - mean, torch.exp(-log_scale)
    low, high = per_scale * (centred - 1 / 255), per_scale * (centred + 1 / 255)
    if cdf is normal_cdf:
        # Above the mean by the other tail, where a float32 near 1 would hide what is left.
        above, beyond = centred > 0, cdf(-low)
        inside = cdf(torch.where(above, -low, high)) - cdf(torch.where(above, -high, low))
    else:
        beyond, inside = 1 - cdf(low), cdf(high) - cdf(low)
    probability = torch.where(x > 0.999, beyond, torch.where(x < -0.999, cdf(high), inside))
    return probability.clamp(min=LEAST_PROBABILITY).log()


def bound_term(
    schedule: NoiseSchedule,
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    model: Gaussian,
    *,
    cdf: Callable[[Tensor], Tensor] = normal_cdf,
) -> Tensor:
    """The term of the variational bound at t, [N] in bits a dimension.

    Ho et al. 2020, eq. 5: at t = 0 the decoder's negative log likelihood of x_start, else the KL of
    q(x_{t-1} | x_t, x_0) from the model's p(x_{t-1} | x_t).

    Args:
        x_start, x_t: [N, ...]; x_start of 256 levels in [-1, 1].
        t: [N] int64.
        model: p, as diffusion.p_mean_variance gives it.
        cdf: as for discretized_gaussian_log_likelihood.
    """
    q = q_posterior_mean_variance(schedule, x_start, x_t, t)
    decoded = (t == 0).view(-1, *[1] * (x_start.ndim - 1))
    # Each term sees harmless numbers where the other counts: an infinity there would spoil the
    # gradient, though not the value.
    of_kl = torch.where(decoded, q.log_variance, model.log_variance)
    of_nll = torch.where(decoded, model.log_variance, 0.0)
    kl = normal_kl(q.mean, q.log_variance, model.mean, of_kl)
    nll = -discretized_gaussian_log_likelihood(x_start, model.mean, 0.5 * of_nll, cdf=cdf)
    return torch.where(t == 0, bits_per_dimension(nll), bits_per_dimension(kl))


def prior_term(schedule: NoiseSchedule, x_start: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, 1)), [N] in bits a dimension (Ho et al. 2020, eq. 5, L_T)."""
    last = torch.full((len(x_start),), schedule.num_timesteps - 1, device=x_start.device)
    q = q_mean_variance(schedule, x_start, last)
    return bits_per_dimension(normal_kl(q.mean, q.log_variance, 0.0, 0.0))


def bits_per_dimension(nats: Tensor) -> Tensor:
    """The mean over each sample of nats [N, ...], [N] in bits."""
    return nats.flatten(1).mean(1) / math.log(2)
