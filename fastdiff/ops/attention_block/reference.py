"""The attention block of DDPM's and ADM's UNets in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..group_norm_silu.reference import group_norm_silu, memory_format, statistics_dtype


def attention_block(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    groups: int,
    group_norm_eps: float,
    heads: int,
    residual_scale: float,
) -> Tensor:
    """The output like `x`; groups 0 is no norm.

    Ho et al. (2020), appendix B; softmax(q k^T / sqrt(d)) v as Vaswani et al. (2017), eq. 1.
    """
    n = x
    if groups:
        n = group_norm_silu(x, groups, norm_weight, norm_bias, group_norm_eps, silu=False)[0]
    tokens = n.flatten(2).transpose(1, 2)
    qkv = F.linear(tokens, qkv_weight, qkv_bias)
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each [N, heads, T, d]
    wide = statistics_dtype(x)
    scores = q.to(wide) @ k.to(wide).transpose(2, 3) / q.shape[3] ** 0.5
    mixed = scores.softmax(3).to(v.dtype) @ v
    h = F.linear(mixed.transpose(1, 2).flatten(2), proj_weight, proj_bias)
    y = (x + h.transpose(1, 2).reshape(x.shape)) * residual_scale
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))
