"""`accelerate`: diffusers' pipelines and models on fastdiff's ops, in place; `restore`: back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import diffusers
from diffusers.models.attention_processor import Attention, SpatialNorm
from diffusers.models.normalization import AdaGroupNorm
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import nn

from fastdiff.compat.diffusers._face import Face
from fastdiff.compat.diffusers._parts import (
    FusedAttention,
    FusedGroupNorm,
    FusedGroupNormSiLU,
    FusedResnetBlock2D,
    Passed,
    attends_plainly,
    blends_plainly,
)
from fastdiff.compat.diffusers._unet import PlannedUNet2DModel
from fastdiff.compat.diffusers.ddim import DDIMScheduler
from fastdiff.compat.diffusers.ddim_inverse import DDIMInverseScheduler
from fastdiff.compat.diffusers.ddpm import DDPMScheduler
from fastdiff.compat.diffusers.dpm_solver import DPMSolverMultistepScheduler

Target = TypeVar("Target", diffusers.DiffusionPipeline, diffusers.ModelMixin)

_SCHEDULERS: dict[type, type[Face]] = {
    diffusers.DDIMInverseScheduler: DDIMInverseScheduler,
    diffusers.DDIMScheduler: DDIMScheduler,
    diffusers.DDPMScheduler: DDPMScheduler,
    diffusers.DPMSolverMultistepScheduler: DPMSolverMultistepScheduler,
}
_FUSED: dict[type, type] = {
    FusedAttention: Attention,
    FusedGroupNorm: nn.GroupNorm,
    FusedGroupNormSiLU: nn.GroupNorm,
    FusedResnetBlock2D: ResnetBlock2D,
    Passed: nn.SiLU,
    PlannedUNet2DModel: diffusers.UNet2DModel,
}
_UNKNOWN = (AdaGroupNorm, ResnetBlockCondNorm2D, SpatialNorm)


def accelerate(target: Target) -> Target:
    """Run a diffusers pipeline or model on fastdiff's ops; what goes in and comes out stays.

    Residual blocks, group norms (the last with its SiLU) and attention among pixels become fused
    ops, a pipeline's scheduler fastdiff's with the same numbers. Modules keep their parameters,
    names and hooks and change their class alone, so state dicts, saving, `.to`, adapters and
    training go on as before. A part that fastdiff does not know is kept, and a warning says which.
    A UNet2DModel runs on the engine's plan where no gradient is asked for, on the CPU.

    Args:
        target: a pipeline, all of whose models are taken, or one model, such as UNet2DModel,
            UNet2DConditionModel or AutoencoderKL. It is changed in place.

    Returns:
        target.

    Raises:
        TypeError: target is neither.
    """
    kept: set[str] = set()
    for model in _models(target):
        kept |= _accelerate_model(model)
    scheduler = getattr(target, "scheduler", None)
    if type(scheduler) in _SCHEDULERS:
        _SCHEDULERS[type(scheduler)].adopt(scheduler)
    elif scheduler is not None and not isinstance(scheduler, Face):
        kept.add(type(scheduler).__name__)
    if kept:
        warnings.warn(
            f"fastdiff does not know these parts of {type(target).__name__}, and keeps them as "
            f"they are: {', '.join(sorted(kept))}.",
            stacklevel=2,
        )
    return target


def restore(target: Target) -> Target:
    """Undo `accelerate`, in place: every part of its original class again.

    Returns target. Raises TypeError for what is neither a pipeline nor a model of diffusers.
    """
    for model in _models(target):
        for module in model.modules():
            if type(module) in _FUSED:
                module.__class__ = _FUSED[type(module)]
    scheduler = getattr(target, "scheduler", None)
    if isinstance(scheduler, Face):
        scheduler.release()
    return target


def _models(target: Any) -> list[Any]:
    if isinstance(target, diffusers.ModelMixin):
        return [target]
    if isinstance(target, diffusers.DiffusionPipeline):
        parts: dict[str, Any] = target.components  # type: ignore[attr-defined]
        return [part for part in parts.values() if isinstance(part, diffusers.ModelMixin)]
    raise TypeError(
        f"got a {type(target).__name__}; give a diffusers pipeline, or a model such as UNet2DModel."
    )


def _accelerate_model(model: Any) -> set[str]:
    """Fuse what can be fused, and name the rest."""
    kept: set[str] = set()
    for module in [*model.modules()]:
        parts = _fusible(module)
        # An offloading hook, say, calls the forward that it found.
        if any("forward" in part.__dict__ for part in parts):
            kept |= {f"{type(part).__name__} with a forward of its own" for part in parts}
            continue
        for part, fused in parts.items():
            part.__class__ = fused
        kept |= {*_unknown(module)}
    if type(model) is diffusers.UNet2DModel and not kept and "forward" not in vars(model):
        model.__class__ = PlannedUNet2DModel
    return kept


def _fusible(module: nn.Module) -> dict[nn.Module, type[nn.Module]]:
    """The module, or two parts that follow each other, and what they may become."""
    norm, act = (getattr(module, name, None) for name in ("conv_norm_out", "conv_act"))
    if type(norm) is nn.GroupNorm and type(act) is nn.SiLU:
        return {norm: FusedGroupNormSiLU, act: Passed}
    if type(module) is nn.GroupNorm:
        return {module: FusedGroupNorm}
    if type(module) is ResnetBlock2D and blends_plainly(module):
        return {module: FusedResnetBlock2D}
    if type(module) is Attention and attends_plainly(module):
        return {module: FusedAttention}
    return {}


def _unknown(module: nn.Module) -> Iterator[str]:
    """What the module is called if it normalises groups in a way that no op here does."""
    name = type(module).__name__
    if type(module) in _FUSED:
        return
    if isinstance(module, (nn.GroupNorm, *_UNKNOWN)):
        yield name
    elif isinstance(module, ResnetBlock2D):
        yield f"{name} with {type(module.nonlinearity).__name__}"
    elif isinstance(module, Attention) and module.group_norm is not None:
        yield f"{name} by {type(module.processor).__name__}"
