"""The attention block composed of the fastest parts there are: fused norm, library products, and
`self_attention` or SDPA.

Between channels-last input and output nothing is copied or transposed.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..group_norm_silu import group_norm_silu
from ..group_norm_silu.reference import memory_format
from ..self_attention import faster_than_sdpa, self_attention
from .fused import products_are_fast, recorded


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
    dtype = x.dtype
    if not products_are_fast(x):
        x, qkv_weight, proj_weight = in_float32(x), qkv_weight.float(), proj_weight.float()
        qkv_bias, proj_bias = (None if b is None else b.float() for b in (qkv_bias, proj_bias))
    with no_autocast(x):
        tokens = normed_tokens(x, groups, norm_weight, norm_bias, group_norm_eps)
        mixed = _mixed(tokens, qkv_weight, qkv_bias, heads)
        return add_projection(x, mixed, proj_weight, proj_bias, residual_scale).to(dtype)


def in_float32(x: Tensor) -> Tensor:
    """x in the memory format that the output has."""
    return x.to(torch.float32, memory_format=memory_format(x))


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Within it, calls on tensors of x's device keep their dtypes."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def normed_tokens(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """The pixels of x [N, C, *spatial], normalised in groups unless that is 0, as [N, T, C]."""
    n = group_norm_silu(x, groups, weight, bias, eps, silu=False) if groups else x
    return n.flatten(2).transpose(1, 2).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(C / heads)) v head by head, of and to [N, T, C]."""
    N, T, C = q.shape
    q, k, v = (part.view(N, T, heads, C // heads).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, T, C)


def attend_in_image(qkv: Tensor, heads: int) -> Tensor:
    """The same among the pixels of qkv [N, 3C, H, W], to [N, C, H, W]; channels-last."""
    of_head = math.prod(qkv.shape[1:]) // (3 * heads)
    if faster_than_sdpa(qkv, of_head) and not qkv.requires_grad:
        return self_attention(qkv, heads)
    return sdpa_in_image(qkv, heads)


def attend_folded_in_image(q: Tensor, image: Tensor) -> Tensor:
    """The same of a folded head, whose keys and values are the image [N, C, H, W] as q is."""
    if faster_than_sdpa(q, of_head=math.prod(q.shape[1:])):
        return self_attention(q, 1, image=image)
    query, pixels = (part.flatten(2).transpose(1, 2) for part in (q, image))
    return attend(query, pixels, pixels, heads=1).transpose(1, 2).view(q.shape)


def sdpa_in_image(qkv: Tensor, heads: int) -> Tensor:
    """The same by torch's own."""
    N, channels, H, W = qkv.shape
    q, k, v = (part.flatten(2).transpose(1, 2) for part in qkv.chunk(3, dim=1))
    return attend(q, k, v, heads).transpose(1, 2).view(N, channels // 3, H, W)


def add_projection(
    x: Tensor, mixed: Tensor, weight: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """(x + mixed @ weight^T + bias) * scale, like x, for mixed [N, T, C]; the product sums."""
    N, T, C = mixed.shape
    if memory_format(x) is torch.contiguous_format:
        y = x.reshape(N, C, T)
        y = (y.clone() if bias is None else y + bias[:, None]).contiguous()
        y.baddbmm_(weight.expand(N, C, C), mixed.transpose(1, 2), beta=scale, alpha=scale)
        return y.view(x.shape)
    rows = x.movedim(1, -1)
    pixels = rows.shape
    rows = rows.reshape(N * T, C)
    rows = rows.clone() if bias is None else rows + bias
    rows.addmm_(mixed.view(N * T, C), weight.t(), beta=scale, alpha=scale)
    return rows.view(pixels).movedim(-1, 1)


def _mixed(tokens: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """attend() of q, k and v, one product of tokens [N, T, C] or three where SDPA repays them."""
    N, T, C = tokens.shape
    three = tokens.is_cpu and tokens.element_size() == 2 and N * T > 512  # measured: NOTES.md
    own = faster_than_sdpa(tokens, T * C // heads) and not recorded(tokens, weight, bias)
    if three and not own:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = map(F.linear, (tokens,) * 3, weight.chunk(3), biases)
        return attend(q, k, v, heads)
    image = F.linear(tokens, weight, bias).transpose(1, 2).unsqueeze(3)
    return attend_in_image(image, heads).flatten(2).transpose(1, 2)
