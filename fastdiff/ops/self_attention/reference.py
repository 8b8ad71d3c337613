"""Attention among an image's pixels, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def self_attention(qkv: Tensor, image: Tensor | None, heads: int, by_tiles: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of each head, channels-last; Vaswani et al. (2017), eq. 1.

    With an image [N, C, H, W], qkv holds the queries alone, and that is keys and values. It does
    not look at by_tiles.
    """
    N, _, H, W = qkv.shape
    if image is not None:
        qkv = torch.cat((qkv, image, image), dim=1)
    tokens = qkv.flatten(2).unflatten(1, (3, heads, -1))  # [N, 3, heads, d, T]
    q, k, v = tokens.transpose(3, 4).unbind(1)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(2, 3) / q.shape[3] ** 0.5
    mixed = scores.softmax(3).to(v.dtype) @ v
    y = mixed.transpose(2, 3).reshape(N, qkv.shape[1] // 3, H, W)
    return y.contiguous(memory_format=torch.channels_last)
