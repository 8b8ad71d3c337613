"""Every operator's time is told once, under its kind."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastdiff import NoiseSchedule, sample
from fastdiff.cli import operators
from fastdiff.cli.operators import KINDS, Operators, kind
from fastdiff.engine import blocks, convolution
from fastdiff.engine.accelerating import planned
from fastdiff.models import UNet
from tests.models.unets import SMALL, randomised


def test_a_run_of_seconds_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ticks of the clock an operator are one second."""
    unet, steps = randomised(UNet(**SMALL)), 3

    def draw() -> torch.Tensor:
        return sample(
            unet, (1, 3, 12, 12), schedule=NoiseSchedule.linear(10), sampler="ddim", steps=steps
        )

    draw()  # makes the plan
    plan = [*planned(unet).modules()]
    ticks = itertools.count(0.0, 1.0)
    monkeypatch.setattr(operators.time, "perf_counter", lambda: next(ticks))
    with Operators(torch.device("cpu")) as listening:
        out = draw()
    monkeypatch.undo()

    assert torch.equal(out, draw())
    seconds = listening.seconds
    assert [*seconds] == [*KINDS]
    assert seconds["convolution"] == steps * sum(isinstance(m, convolution.KINDS) for m in plan)
    assert seconds["normalisation"] == steps * sum(
        isinstance(m, blocks.Normalisation) for m in plan
    )
    assert seconds["attention"] == steps * sum(
        isinstance(m, blocks.PackedAttention | blocks.FoldedAttention) for m in plan
    )
    assert seconds["step and noise"] == steps + 1  # x_T is drawn too
    assert seconds["other"] > 0
    assert sum(seconds.values()) == next(ticks) / 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fastdiff::conv3x3", "convolution"),
        ("aten::convolution", "convolution"),
        ("aten::cudnn_convolution", "convolution"),
        ("mkldnn::_convolution_pointwise.binary", "convolution"),
        ("aten::native_group_norm", "normalisation"),
        ("fastdiff::attention_block", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("fastdiff::philox_normal", "step and noise"),
        ("aten::cat", "other"),
    ],
)
def test_kinds(name: str, expected: str) -> None:
    assert kind(name) == expected
