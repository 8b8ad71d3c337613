"""`fastdiff.accelerate`, whatever it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from fastdiff.engine import AcceleratedUNet
from fastdiff.engine import accelerate as accelerate_unet
from fastdiff.models import UNet

if TYPE_CHECKING:
    from fastdiff.compat.diffusers.accelerating import Target


@overload
def accelerate(target: UNet) -> AcceleratedUNet: ...
@overload
def accelerate(target: Target) -> Target: ...
def accelerate(target: Any) -> Any:
    """Make a model fast: a `fastdiff.UNet`, or a pipeline or model of diffusers.

    A UNet is left as it is; the result is called as it is, without gradients, and runs on weights
    packed once (`fastdiff.engine.accelerate`). `fastdiff.sample` does that by itself. An object of
    diffusers is changed in place, and `fastdiff.restore` undoes it
    (`fastdiff.compat.diffusers.accelerate`).

    Raises:
        TypeError: target is none of these.
        ValueError: a UNet that plans do not cover: not on the CPU, or in float64.
        ImportError: target is no UNet, and diffusers is not installed.
    """
    if isinstance(target, UNet):
        return accelerate_unet(target)
    from fastdiff.compat.diffusers import accelerate as accelerate_in_place

    return accelerate_in_place(target)
