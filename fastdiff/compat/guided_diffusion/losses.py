"""guided_diffusion.losses: likelihoods, with Ho's approximation of the normal distribution."""

from __future__ import annotations

from torch import Tensor

from fastdiff import losses

__all__ = [
    "approx_standard_normal_cdf",
    "discretized_gaussian_log_likelihood",
    "normal_kl",
]

approx_standard_normal_cdf = losses.tanh_normal_cdf


def normal_kl(
    mean1: Tensor | float,
    logvar1: Tensor | float,
    mean2: Tensor | float,
    logvar2: Tensor | float,
) -> Tensor:
    """See fastdiff.losses.normal_kl."""
    return losses.normal_kl(mean1, logvar1, mean2, logvar2)


def discretized_gaussian_log_likelihood(x: Tensor, *, means: Tensor, log_scales: Tensor) -> Tensor:
    """See fastdiff.losses.discretized_gaussian_log_likelihood."""
    return losses.discretized_gaussian_log_likelihood(
        x, means, log_scales, cdf=losses.tanh_normal_cdf
    )
