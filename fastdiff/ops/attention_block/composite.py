"""The attention block composed of the fastest parts there are: fused norm, library products, SDPA.

Between channels-last input and output nothing is copied or transposed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..group_norm_silu import group_norm_silu
from ..group_norm_silu.reference import memory_format


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
    """As the reference, of differentiable calls."""
    with torch.autocast(x.device.type, enabled=False):
        tokens = normed_tokens(x, groups, norm_weight, norm_bias, group_norm_eps)
        parts = _qkv(tokens, qkv_weight, qkv_bias)
        mixed = attend(*(part.unflatten(2, (heads, -1)) for part in parts))
        return add_projection(x, mixed, proj_weight, proj_bias, residual_scale)


def normed_tokens(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """The pixels of x [N, C, *spatial], normalised in groups unless that is 0, as [N, T, C]."""
    n = group_norm_silu(x, groups, weight, bias, eps, silu=False) if groups else x
    return n.flatten(2).transpose(1, 2).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v head by head: q, k, v [N, T, heads, d] -> [N, T, heads * d]."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def add_projection(
    x: Tensor, mixed: Tensor, weight: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """(x + mixed @ weight^T + bias) * scale, like x, for mixed [N, T, C]; the product sums."""
    N, C = x.shape[:2]
    pixels = x.flatten(2)
    if memory_format(x) is torch.contiguous_format:
        y = (pixels.clone() if bias is None else pixels + bias[:, None]).contiguous()
        y.baddbmm_(weight.expand(N, C, C), mixed.transpose(1, 2), beta=scale, alpha=scale)
        return y.view(x.shape)
    rows = pixels.transpose(1, 2).flatten(0, 1)
    rows = rows.clone() if bias is None else rows + bias
    rows.addmm_(mixed.flatten(0, 1), weight.t(), beta=scale, alpha=scale)
    return rows.view(mixed.shape).transpose(1, 2).unflatten(2, x.shape[2:])


def _qkv(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """q, k and v [N, T, C] by one product, or by three where SDPA repays whole rows."""
    rows = tokens.shape[0] * tokens.shape[1]
    if tokens.is_cpu and tokens.element_size() == 2 and rows > 512:  # measured: NOTES.md
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return tuple(F.linear(tokens, *part) for part in zip(weight.chunk(3), biases, strict=True))
    return F.linear(tokens, weight, bias).chunk(3, dim=2)
