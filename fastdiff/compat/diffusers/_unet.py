"""diffusers' UNet2DModel on the engine's plan of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import diffusers
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from fastdiff.engine import AcceleratedUNet, accelerate
from fastdiff.models import UNet
from fastdiff.ops._library import transformed

_plans: WeakKeyDictionary[nn.Module, tuple[Any, AcceleratedUNet | None]] = WeakKeyDictionary()


class PlannedUNet2DModel(diffusers.UNet2DModel):
    """Its forward runs on a plan where no gradient is asked for, and by its parts otherwise."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the original's."""
        plan = plan_of(self)
        if plan is None or isinstance(timestep, float):
            return super().forward(sample, timestep, class_labels, return_dict)  # type: ignore[misc]
        layout = torch.contiguous_format if sample.is_contiguous() else torch.preserve_format
        out = plan(sample, timestep, class_labels).contiguous(memory_format=layout)
        return UNet2DOutput(sample=out) if return_dict else (out,)


def plan_of(model: Any) -> AcceleratedUNet | None:
    """A plan of the model as it is now, or None where there is none or it would not do."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return None
    if transformed():
        return None
    if model.training or next(model.parameters()).device.type != "cpu":
        return None
    state = [*_state(model)]
    kept = _plans.get(model)
    if kept is None or kept[0] != state:
        kept = _plans[model] = state, _planned(model)
    return kept[1]


def _planned(model: Any) -> AcceleratedUNet | None:
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    try:
        with torch.device("meta"):
            unet = UNet(**model.config)
        unet.load_state_dict(model.state_dict(), assign=True)
        return accelerate(unet)
    except (RuntimeError, TypeError, ValueError):
        return None  # a part or a config that fastdiff.UNet does not have


def _state(model: nn.Module) -> Iterator[Any]:
    """What differs once a part, a processor, a hook or a parameter is another, or written to."""
    for module in model.modules():
        yield type(module), type(getattr(module, "processor", None))
        yield len(module._forward_hooks), len(module._forward_pre_hooks)
        for p in module._parameters.values():
            yield None if p is None else (p.data_ptr(), 0 if p.is_inference() else p._version)
