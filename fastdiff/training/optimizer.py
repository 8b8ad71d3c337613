"""AdamW with the gradient's clipping in the same pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.ops import adamw_


class AdamW(torch.optim.AdamW):
    """torch's, fused, with its state; on the CPU fastdiff's kernel takes the steps."""

    def __init__(self, weights: Iterable[nn.Parameter], rate: float, weight_decay: float) -> None:
        super().__init__(weights, lr=rate, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step_scaled(self, gradient_scale: float) -> None:
        """One step for the gradients times `gradient_scale`; what .grad holds then is undefined."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if all(weight.is_cpu for weight in weights):
            for group in self.param_groups:
                self._step_on_cpu(group, gradient_scale)
            return
        if gradient_scale != 1:
            torch._foreach_mul_([p.grad for p in weights], gradient_scale)
        self.step()

    def _step_on_cpu(self, group: dict[str, Any], gradient_scale: float) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        states = [self._state_of(p) for p in weights]
        made = [state["step"] for state in states]
        torch._foreach_add_(made, 1)
        adamw_(
            weights,
            [p.grad for p in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [int(step) for step in made],
            gradient_scale=gradient_scale,
            learning_rate=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def _state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """As torch's fused AdamW begins it."""
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state
