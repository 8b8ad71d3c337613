"""diffusers' schedulers with a fused step, and its pipelines and models on fastdiff's ops."""

from importlib import import_module

try:
    import_module("diffusers")
except ModuleNotFoundError as error:
    if error.name != "diffusers":
        raise
    raise ImportError(
        "fastdiff's DDPMScheduler, DDIMScheduler, DDIMInverseScheduler and "
        "DPMSolverMultistepScheduler stand in for those of diffusers, and accelerate and restore "
        "take its pipelines and models; it is not installed: pip install diffusers."
    ) from None

from fastdiff.compat.diffusers.accelerating import accelerate, restore
from fastdiff.compat.diffusers.ddim import DDIMScheduler
from fastdiff.compat.diffusers.ddim_inverse import DDIMInverseScheduler
from fastdiff.compat.diffusers.ddpm import DDPMScheduler
from fastdiff.compat.diffusers.dpm_solver import DPMSolverMultistepScheduler

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "accelerate",
    "restore",
]
