"""The norm of many tensors in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """sqrt of the sum of all squares, by the norms of the tensors."""
    return torch.nn.utils.get_total_norm(tensors)
