"""`self_attention`: attention among an image's pixels, head by head."""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor

from .. import _library
from . import reference

__all__ = ["faster_than_sdpa", "self_attention"]

# By the processor's kind, the most values of a head's keys for which it was as fast or faster.
_ANY = sys.maxsize
_FAST_UP_TO = {
    torch.float32: {"v3": 2**17, "v4": _ANY, "v4_bf16": _ANY, "v4_amx": _ANY},
    torch.float16: {"v3": _ANY, "v4": _ANY, "v4_bf16": _ANY, "v4_amx": _ANY},
    torch.bfloat16: {"v3": _ANY, "v4": _ANY, "v4_amx": _ANY},
}


def self_attention(
    qkv: Tensor, heads: int, *, image: Tensor | None = None, by_tiles: bool | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(C / heads)) v of each head (Vaswani et al. 2017, eq. 1).

    The scores and the softmax are float32, float64 for float64. The C++ kernel multiplies in
    float32 whatever the dtype, or bfloat16 as it is, by tiles.

    Args:
        qkv: [N, 3C, H, W], floating point: the channels of q, then of k, then of v; a head is
            C / heads successive ones of each. The kernel takes images whose channels lie side by
            side, and rows one after the other.
        heads: divides C.
        image: [N, C, H, W] that is keys and values, like qkv, which then is [N, C, H, W] of q
            alone: what a folded head needs.
        by_tiles: whether bfloat16 is multiplied as it is, as a processor's matrix unit does; None
            is where there is such a unit.

    Returns:
        [N, C, H, W] of qkv's dtype, channels-last.

    Raises:
        TypeError: qkv is not of a floating dtype, or the image of another.
        ValueError: a shape does not fit.
    """
    if not qkv.is_floating_point():
        raise TypeError(f"qkv is {qkv.dtype}; convert it to a floating dtype")
    parts = 3 if image is None else 1
    if qkv.dim() != 4 or heads < 1 or qkv.shape[1] == 0 or qkv.shape[1] % (parts * heads):
        wanted = "[N, 3C, H, W]" if image is None else "[N, C, H, W]"
        raise ValueError(
            f"qkv has shape {list(qkv.shape)}, for {heads} heads; give {wanted} of a C that "
            "the heads divide"
        )
    if image is not None and image.shape != qkv.shape:
        raise ValueError(f"image has shape {list(image.shape)}; give that of qkv, {[*qkv.shape]}")
    if image is not None and image.dtype != qkv.dtype:
        raise TypeError(f"image is {image.dtype} and qkv {qkv.dtype}; convert one to the other")
    unit = _library.has_matrix_unit() if by_tiles is None else by_tiles
    out: Tensor = _op(qkv, image, heads, unit)
    return out


def faster_than_sdpa(x: Tensor, of_head: int) -> bool:
    """Whether it is faster than torch's SDPA for tensors like x, as measured (NOTES.md).

    `of_head` counts the values of a head's keys. Without AVX2 nobody has measured it, nor against
    SDPA's dot products of bfloat16 where a processor has those and no matrix unit.
    """
    if not x.is_cpu or x.dtype not in _FAST_UP_TO or not _is_native():
        return False
    return of_head <= _FAST_UP_TO[x.dtype].get(_library.cpu_level(), -1)


@functools.cache
def _is_native() -> bool:
    return _library.native_kernel("self_attention", "CPU")


def _fake(qkv: Tensor, image: Tensor | None, heads: int, by_tiles: bool) -> Tensor:
    N, channels, H, W = qkv.shape
    y = qkv.new_empty((N, channels // (3 if image is None else 1), H, W))
    return y.contiguous(memory_format=torch.channels_last)


_op = _library.define(
    "self_attention(Tensor qkv, Tensor? image, int heads, bool by_tiles) -> Tensor",
    reference=reference.self_attention,
    fake=_fake,
)
