"""How well a model fits images: bits a dimension by the variational bound, and by the flow."""

from fastdiff.likelihood.bound import BitsPerDim, bits_per_dim
from fastdiff.likelihood.flow import FlowBitsPerDim, flow_log_density, ode_bits_per_dim
from fastdiff.likelihood.rate_distortion import RateDistortion

__all__ = [
    "BitsPerDim",
    "FlowBitsPerDim",
    "RateDistortion",
    "bits_per_dim",
    "flow_log_density",
    "ode_bits_per_dim",
]
