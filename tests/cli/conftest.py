"""The command line run in this process, and a tiny model for it."""

import sys
from collections import namedtuple

import pytest
import torch

from fastdiff import NoiseSchedule, UNet, checkpoints
from fastdiff.cli import main

Outcome = namedtuple("Outcome", "status out err")


@pytest.fixture
def fastdiff(monkeypatch, capsys):
    """Call `fastdiff(*arguments)`: the exit status and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastdiff", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return Outcome(status, *capsys.readouterr())

    return call


def save_tiny_model(folder, size=8, **config):
    torch.manual_seed(0)
    tiny = {
        "image_channels": 1, "channels": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4,
        "attention_resolutions": (4,),
    }  # fmt: skip
    unet = UNet.ddpm(size, **(tiny | config))
    for weight in unet.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    pretrained = checkpoints.Pretrained(unet=unet.eval(), schedule=NoiseSchedule.linear(100))
    checkpoints.save(folder, pretrained)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Three classes, 8x8, T = 100."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), num_classes=3)


@pytest.fixture(scope="session")
def classless_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("classless"))
