"""Each second of a model is told once, by the outermost part that has a kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.cli.stopwatch import Stopwatch
from fastdiff.engine import accelerate, blocks
from fastdiff.models import UNet
from tests.models.unets import SMALL, randomised


@pytest.mark.parametrize("attention", [blocks.PackedAttention, blocks.Attention])
@torch.no_grad()
def test_parts_within_parts_count_once(monkeypatch: pytest.MonkeyPatch, attention: Any) -> None:
    monkeypatch.setattr(blocks, "PackedAttention", attention)
    fast = accelerate(randomised(UNet(**SMALL)))
    outermost = [m for m in fast.modules() if isinstance(m, attention)]
    assert outermost
    watch = Stopwatch()
    timed: Any = watch.time_model(fast, torch.device("cpu"))
    for module in outermost:
        assert module._forward_hooks
        assert not any(m._forward_hooks for m in module.modules() if m is not module)
    timed(torch.randn(1, 3, 12, 12), 5)
    watch.add("sampling", watch.seconds["UNet"])
    profile = watch.profile()
    assert all(profile[kind] > 0 for kind in ("convolution", "normalisation", "attention"))
    assert profile["other"] >= 0
