"""Parameters of attention blocks, and how the tests of them are set."""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = [torch.contiguous_format, torch.channels_last]
EPS = 1e-5


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(C: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Norm, QKV and projection, weight and bias each, with scores that differ among the pixels."""
    shapes = ((C,), (3 * C, C), (C, C))
    norm, qkv, proj = (randn(*shape, seed=seed + i) for i, shape in enumerate(shapes))
    weights = (norm, 1.5 * qkv / C**0.5, proj / C**0.5)
    result = []
    for index, weight in enumerate(weights):
        result += [weight, randn(len(weight), seed=seed + 10 + index)]
    return [p.to(dtype) for p in result]
