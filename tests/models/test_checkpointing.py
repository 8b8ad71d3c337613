"""Activation checkpointing: the same gradients to the bit, of fewer kept tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.models import UNet
from tests.models.unets import ADM, SMALL, randomised


def gradients(unet: UNet, precision: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 12, 12, generator=generator)
    labels = torch.tensor([0, 3]) if unet.num_classes else None
    torch.manual_seed(2)  # dropout's
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = unet(x, torch.tensor([4, 700]), labels)
    unet.zero_grad()
    out.float().square().sum().backward()
    return {name: weight.grad for name, weight in unet.named_parameters()}  # type: ignore[misc]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("config", [SMALL, ADM], ids=["ddpm", "adm"])
def test_gradients_are_the_same_to_the_bit(config: dict[str, Any], precision: torch.dtype) -> None:
    unet = randomised(UNet(**config, dropout=0.3)).train()
    plain = gradients(unet, precision)
    assert all(gradient.any() for gradient in plain.values())
    unet.checkpoint_activations()
    for name, gradient in gradients(unet, precision).items():
        assert torch.equal(gradient, plain[name]), name


def kept_for_backward(unet: UNet) -> int:
    """How many numbers lie in memory between forward and backward."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(torch.randn(2, 3, 12, 12), torch.tensor([4, 700]))
    return sum(kept.values())


def test_less_is_kept() -> None:
    unet = randomised(UNet(**SMALL)).train()
    plain = kept_for_backward(unet)
    unet.checkpoint_activations()
    assert kept_for_backward(unet) < plain / 2
    unet.checkpoint_activations(False)
    assert kept_for_backward(unet) == plain
