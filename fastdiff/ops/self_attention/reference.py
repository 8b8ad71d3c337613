"""Attention among an image's pixels, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def self_attention(qkv: Tensor, heads: int, by_tiles: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of each head, channels-last; Vaswani et al. (2017), eq. 1.

    It does not look at by_tiles.
    """
    N, channels, H, W = qkv.shape
    tokens = qkv.flatten(2).unflatten(1, (3, heads, -1))  # [N, 3, heads, d, T]
    q, k, v = tokens.transpose(3, 4).unbind(1)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(2, 3) / q.shape[3] ** 0.5
    mixed = scores.softmax(3).to(v.dtype) @ v
    y = mixed.transpose(2, 3).reshape(N, channels // 3, H, W)
    return y.contiguous(memory_format=torch.channels_last)
