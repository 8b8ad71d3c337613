"""Samplers: each a table of coefficients, and one loop that walks it."""

from fastdiff.samplers.interpolation import interpolate_ddim, interpolate_ddpm, slerp
from fastdiff.samplers.loop import SampleStep
from fastdiff.samplers.plan import Plan, visited_timesteps
from fastdiff.samplers.sampling import (
    SAMPLERS,
    ddim_invert,
    make_plan,
    sample,
    sample_progressive,
)

__all__ = [
    "SAMPLERS",
    "Plan",
    "SampleStep",
    "ddim_invert",
    "interpolate_ddim",
    "interpolate_ddpm",
    "make_plan",
    "sample",
    "sample_progressive",
    "slerp",
    "visited_timesteps",
]
