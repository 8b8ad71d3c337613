"""`self_attention`: attention among an image's pixels, head by head."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from . import reference

__all__ = ["faster_than_sdpa", "self_attention"]


def self_attention(qkv: Tensor, heads: int, *, by_tiles: bool | None = None) -> Tensor:
    """softmax(q k^T / sqrt(C / heads)) v of each head (Vaswani et al. 2017, eq. 1).

    The scores and the softmax are float32, float64 for float64. The C++ kernel multiplies in
    float32 whatever the dtype, or bfloat16 as it is, by tiles.

    Args:
        qkv: [N, 3C, H, W], floating point: the channels of q, then of k, then of v; a head is
            C / heads successive ones of each. The kernel takes images whose channels lie side by
            side, and rows one after the other.
        heads: divides C.
        by_tiles: whether bfloat16 is multiplied as it is, as a processor's matrix unit does; None
            is where there is such a unit.

    Returns:
        [N, C, H, W] of qkv's dtype, channels-last.

    Raises:
        TypeError: qkv is not of a floating dtype.
        ValueError: a shape does not fit.
    """
    if not qkv.is_floating_point():
        raise TypeError(f"qkv is {qkv.dtype}; convert it to a floating dtype")
    if qkv.dim() != 4 or heads < 1 or qkv.shape[1] == 0 or qkv.shape[1] % (3 * heads):
        raise ValueError(
            f"qkv has shape {list(qkv.shape)}, for {heads} heads; give [N, 3C, H, W] of a C that "
            "the heads divide"
        )
    out: Tensor = _op(qkv, heads, _library.has_matrix_unit() if by_tiles is None else by_tiles)
    return out


def faster_than_sdpa(x: Tensor) -> bool:
    """Whether it is faster than torch's SDPA for tensors like x, as measured (NOTES.md).

    Without AVX2 nobody has measured it, nor against SDPA's dot products of bfloat16 where a
    processor has those and no matrix unit.
    """
    known = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not x.is_cpu or not known or not _library.native_kernel("self_attention", "CPU"):
        return False
    level = _library.cpu_level()
    return level in ("v3", "v4", "v4_amx") or (level == "v4_bf16" and x.dtype != torch.bfloat16)


def _fake(qkv: Tensor, heads: int, by_tiles: bool) -> Tensor:
    N, channels, H, W = qkv.shape
    y = qkv.new_empty((N, channels // 3, H, W))
    return y.contiguous(memory_format=torch.channels_last)


_op = _library.define(
    "self_attention(Tensor qkv, int heads, bool by_tiles) -> Tensor",
    reference=reference.self_attention,
    fake=_fake,
)
