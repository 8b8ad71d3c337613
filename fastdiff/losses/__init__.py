"""Training losses of the DDPM papers, and the terms of the variational bound."""

from fastdiff.losses.bound import (
    bits_per_dimension,
    bound_term,
    discretized_gaussian_log_likelihood,
    normal_kl,
    prior_term,
    tanh_normal_cdf,
)
from fastdiff.losses.objectives import (
    TrainingLosses,
    min_snr_weights,
    simple_loss,
    training_losses,
)

__all__ = [
    "TrainingLosses",
    "bits_per_dimension",
    "bound_term",
    "discretized_gaussian_log_likelihood",
    "min_snr_weights",
    "normal_kl",
    "prior_term",
    "simple_loss",
    "tanh_normal_cdf",
    "training_losses",
]
