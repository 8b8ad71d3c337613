"""What a UNet's forward takes, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.models.config import UNetConfig
from fastdiff.ops.philox_normal import readable


def steps_by_sample(x: Tensor, t: Tensor | int) -> Tensor:
    """t as a tensor [N] on x's device."""
    if not isinstance(t, Tensor):
        t = torch.full((1,), t, device=x.device)
    return t.to(x.device).expand(x.shape[0])


def check_inputs(
    config: UNetConfig, x: Tensor, t: Tensor | int, class_labels: Tensor | None
) -> None:
    """Raise ValueError for a shape or a label that a UNet of this config does not take."""
    factor = config.down_factor
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise ValueError(
            f"x has the shape {list(x.shape)}; this UNet takes [N, {config.in_channels}, H, W]."
        )
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"x is {x.shape[2]}x{x.shape[3]}; this UNet halves it {factor.bit_length() - 1} "
            f"times, so give height and width that are multiples of {factor}."
        )
    if isinstance(t, Tensor) and t.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(
            f"t has the shape {list(t.shape)}; give one step, or one for each of the "
            f"{x.shape[0]} samples of x."
        )
    if config.takes_classes == (class_labels is None):
        raise ValueError(
            "class_labels are missing: this UNet was made with classes; give a tensor [N]."
            if class_labels is None
            else "class_labels were given to a UNet made without classes; leave them out."
        )
    if class_labels is not None:
        _check_labels(config, x, class_labels)


def _check_labels(config: UNetConfig, x: Tensor, labels: Tensor) -> None:
    if labels.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"class_labels have the shape {list(labels.shape)}; "
            f"give one label for each of the {x.shape[0]} samples of x."
        )
    check_range(config, labels)


def check_range(config: UNetConfig, labels: Tensor) -> None:
    """Raise ValueError for labels of no class, where a look does not wait for the device."""
    if config.num_classes is not None and labels.numel() and readable(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= config.num_classes:
            raise ValueError(
                f"class_labels reach from {low} to {high}; "
                f"this UNet's classes are 0 to {config.num_classes - 1}."
            )
