"""Weights with nothing zero in them."""

from __future__ import annotations

import torch


def shaken(model, seed=0):
    """Every parameter as it came, plus noise where it was constant; the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            spread = 0.2 if p.ndim == 1 else p[0].numel() ** -0.5
            p += spread * torch.randn(p.shape, generator=generator)
    return model.eval()
