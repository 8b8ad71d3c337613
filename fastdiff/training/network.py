"""The UNet that a run trains."""

from __future__ import annotations

import torch

from fastdiff.models import UNet
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import ImageData


def build_unet(config: TrainConfig, data: ImageData, device: torch.device) -> UNet:
    """New weights, channels-last; with label dropout one label more than the data's classes.

    Raises ValueError for images that are not square or do not halve as often as the model does.
    """
    _, image_channels, height, width = data.images.shape
    factor = 2 ** (len(config.multipliers) - 1)
    if height != width:
        raise ValueError(f"the images are {height} x {width}; fastdiff train takes square ones")
    if height % factor:
        raise ValueError(
            f"the images are {height} x {width} and {len(config.multipliers)} resolutions halve "
            f"them to 1/{factor}; give multiples of {factor}, or fewer multipliers"
        )
    unet = UNet.ddpm(
        height,
        image_channels=image_channels,
        channels=config.channels,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention_resolutions=config.attention_resolutions,
        num_classes=_labels(config, data),
        learn_sigma=config.learns_variance,
        groups=config.groups,
        dropout=config.dropout,
    )
    # torch's stub of Module.to leaves memory_format out.
    return unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def no_class_label(config: TrainConfig, data: ImageData) -> int | None:
    """The label for no class: the one after the data's, in a run with label dropout."""
    return data.num_classes if config.label_dropout else None


def _labels(config: TrainConfig, data: ImageData) -> int | None:
    classes = data.num_classes
    if config.label_dropout and classes is None:
        raise ValueError(
            f"label_dropout is {config.label_dropout} and the data has no labels; leave it out"
        )
    return classes if classes is None else classes + bool(config.label_dropout)
