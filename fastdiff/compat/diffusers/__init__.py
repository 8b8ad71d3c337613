"""diffusers' schedulers with a fused step: its classes, constructors, configs and numbers."""

from importlib import import_module

try:
    import_module("diffusers")
except ModuleNotFoundError as error:
    if error.name != "diffusers":
        raise
    raise ImportError(
        "fastdiff's DDPMScheduler, DDIMScheduler, DDIMInverseScheduler and "
        "DPMSolverMultistepScheduler stand in for those of diffusers, which is not installed: "
        "pip install diffusers."
    ) from None

from fastdiff.compat.diffusers.ddim import DDIMScheduler
from fastdiff.compat.diffusers.ddim_inverse import DDIMInverseScheduler
from fastdiff.compat.diffusers.ddpm import DDPMScheduler
from fastdiff.compat.diffusers.dpm_solver import DPMSolverMultistepScheduler

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
]
