"""biased_sum_ in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def biased_sum_(x: Tensor, bias: Tensor | None, residual: Tensor | None, scale: float) -> None:
    """As the op."""
    total = x.to(torch.promote_types(x.dtype, torch.float32))
    if bias is not None:
        total = total + bias.to(total.dtype).view(-1, *[1] * (x.ndim - 2))
    if residual is not None:
        total = total + residual.to(total.dtype)
    x.copy_(total * scale)
