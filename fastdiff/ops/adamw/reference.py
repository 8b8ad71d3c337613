"""AdamW in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def adamw_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[int],
    gradient_scale: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with Kingma and Ba's bias corrections (2015)."""
    tensors = zip(weights, gradients, means, squares, steps, strict=True)
    for weight, gradient, mean, square, step in tensors:
        scaled = gradient * gradient_scale
        mean.mul_(beta1).add_(scaled, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        root = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
        weight.mul_(1 - learning_rate * weight_decay)
        weight.addcdiv_(mean, root, value=-learning_rate / (1 - beta1**step))
