"""Sampling, training and scoring of DDPM-family diffusion models, fast and exact.

Public names load on first use, so that ``fastdiff doctor`` runs where torch does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastdiff._version import __version__

if TYPE_CHECKING:
    from fastdiff import checkpoints as checkpoints
    from fastdiff import diffusion as diffusion
    from fastdiff import engine as engine
    from fastdiff import evaluation as evaluation
    from fastdiff import learned_schedule as learned_schedule
    from fastdiff import likelihood as likelihood
    from fastdiff import losses as losses
    from fastdiff import models as models
    from fastdiff import ops as ops
    from fastdiff import samplers as samplers
    from fastdiff import schedules as schedules
    from fastdiff import timestep_samplers as timestep_samplers
    from fastdiff import training as training
    from fastdiff.checkpoints import CheckpointError as CheckpointError
    from fastdiff.checkpoints import Pretrained as Pretrained
    from fastdiff.checkpoints import load as load
    from fastdiff.compat.accelerating import accelerate as accelerate
    from fastdiff.compat.diffusers import DDIMInverseScheduler as DDIMInverseScheduler
    from fastdiff.compat.diffusers import DDIMScheduler as DDIMScheduler
    from fastdiff.compat.diffusers import DDPMScheduler as DDPMScheduler
    from fastdiff.compat.diffusers import (
        DPMSolverMultistepScheduler as DPMSolverMultistepScheduler,
    )
    from fastdiff.compat.diffusers import restore as restore
    from fastdiff.diffusion import DynamicThresholding as DynamicThresholding
    from fastdiff.models import UNet as UNet
    from fastdiff.samplers import SampleStep as SampleStep
    from fastdiff.samplers import ddim_invert as ddim_invert
    from fastdiff.samplers import interpolate_ddim as interpolate_ddim
    from fastdiff.samplers import interpolate_ddpm as interpolate_ddpm
    from fastdiff.samplers import sample as sample
    from fastdiff.samplers import sample_progressive as sample_progressive
    from fastdiff.samplers import slerp as slerp
    from fastdiff.schedules import NoiseSchedule as NoiseSchedule
    from fastdiff.schedules import timesteps as timesteps

_HOME = {
    "CheckpointError": "fastdiff.checkpoints",
    "DynamicThresholding": "fastdiff.diffusion",
    "NoiseSchedule": "fastdiff.schedules",
    "Pretrained": "fastdiff.checkpoints",
    "SampleStep": "fastdiff.samplers",
    "UNet": "fastdiff.models",
    "accelerate": "fastdiff.compat.accelerating",
    "ddim_invert": "fastdiff.samplers",
    "interpolate_ddim": "fastdiff.samplers",
    "interpolate_ddpm": "fastdiff.samplers",
    "load": "fastdiff.checkpoints",
    "sample": "fastdiff.samplers",
    "sample_progressive": "fastdiff.samplers",
    "slerp": "fastdiff.samplers",
    "timesteps": "fastdiff.schedules",
}
__all__ = ["__version__", *_HOME]

# Names that ask for a library more, so that `from fastdiff import *` does not.
_HOME |= {
    "DDIMInverseScheduler": "fastdiff.compat.diffusers",
    "DDIMScheduler": "fastdiff.compat.diffusers",
    "DDPMScheduler": "fastdiff.compat.diffusers",
    "DPMSolverMultistepScheduler": "fastdiff.compat.diffusers",
    "restore": "fastdiff.compat.diffusers",
}

_PARTS = {
    "checkpoints", "diffusion", "engine", "evaluation", "learned_schedule", "likelihood", "losses",
    "models", "ops", "samplers", "schedules", "timestep_samplers", "training",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"fastdiff.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PARTS})
