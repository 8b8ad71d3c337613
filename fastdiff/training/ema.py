"""Exponential moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Keeps ``average = decay * average + (1 - decay) * weight``, step by step.

    The decay rises to its full value as (1 + step) / (10 + step), so that the first
    random weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in _weights(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [weight.detach() for _, weight in _weights(model)]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, weight in _weights(model):
            weight.copy_(self.weights[name])


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.named_parameters())
