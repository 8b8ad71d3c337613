"""What a trained model tells of itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fastdiff import NoiseSchedule
from fastdiff.checkpoints import Pretrained
from fastdiff.models import UNet


@pytest.fixture
def pretrained() -> Pretrained:
    torch.manual_seed(0)
    unet = UNet.ddpm(
        8, image_channels=1, channels=8, multipliers=(1,), blocks=1, groups=4, num_classes=4
    )
    return Pretrained(unet, NoiseSchedule.linear(10))


def _nudge(told: Pretrained) -> Pretrained:
    unet = copy.deepcopy(told.unet)
    with torch.no_grad():
        unet.conv_out.bias[0] = torch.nextafter(unet.conv_out.bias[0], torch.tensor(1.0))
    return replace(told, unet=unet)


@pytest.mark.parametrize(
    "change",
    [
        _nudge,
        lambda told: replace(told, schedule=NoiseSchedule.linear(11)),
        lambda told: replace(told, prediction_type="v"),
        lambda told: replace(told, variance_type="fixed_large"),
        lambda told: replace(told, clip=False),
        lambda told: replace(told, timestep_scale=2.0),
        lambda told: replace(told, no_class_label=3),
    ],
)
def test_whatever_changes_the_images_changes_the_fingerprint(
    pretrained: Pretrained, change: Callable[[Pretrained], Pretrained]
) -> None:
    assert change(pretrained).fingerprint() != pretrained.fingerprint()


def test_the_fingerprint_stays_in_another_layout(pretrained: Pretrained) -> None:
    before = pretrained.fingerprint()
    other = replace(pretrained, unet=copy.deepcopy(pretrained.unet))
    other.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert other.fingerprint() == before
