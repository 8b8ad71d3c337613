"""What the Triton kernels share: how samples are cut into tiles, and where an element lies."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGE_SAMPLE = 2**14
MOST_PROGRAMS = 65535  # along a grid's second axis
SINGLE_OR_HALF = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def check_bits(compute_capability: int, version: str) -> None:
    """Raise RuntimeError where this triton would change the noise's bits."""
    if compute_capability >= 10 and version.startswith("3.6."):
        raise RuntimeError(
            f"triton {version} fuses packed products and sums on compute capability "
            f"{compute_capability}.x, which changes the noise's bits: install triton 3.7 or newer"
        )


def walkable(x: Tensor) -> bool:
    """Whether a kernel computes in float32 what x asks for, and can walk it as it lies."""
    return x.dtype in SINGLE_OR_HALF and (x.is_contiguous() or channels_last(x))


def channels_last(x: Tensor) -> bool:
    """Whether x [N, C, ...] is contiguous but for its channels, which stand last."""
    if x.ndim < 3 or x.is_contiguous():
        return False
    return x.movedim(1, -1).is_contiguous() and math.prod(x.shape[2:]) < 2**30


def laid_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor in the memory format of a walkable one."""
    if tensor.is_contiguous() if like.is_contiguous() else channels_last(tensor):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def block_of(x: Tensor, others: int = 0) -> int:
    """Elements a program takes: more in large samples, where `others` leave registers for them."""
    return 2048 if math.prod(x.shape[1:]) >= LARGE_SAMPLE and others == 0 else 1024


def grid_of(x: Tensor, block: int) -> tuple[int, int, int]:
    """A program for each sample of x [N, ...] and block of elements in it; some may be empty."""
    if x.is_cuda:
        check_bits(torch.cuda.get_device_capability(x.device)[0], triton.__version__)
    tiles = triton.cdiv(math.prod(x.shape[1:]), block)
    return len(x), min(tiles, MOST_PROGRAMS), triton.cdiv(tiles, MOST_PROGRAMS)


def vector(*tensors: Tensor | None) -> int:
    """Elements a thread takes at a time: 16 bytes of the shortest dtype, four at least."""
    return 8 if any(t is not None and t.element_size() <= 2 for t in tensors) else 4


@triton.jit
def tile_of_sample(BLOCK: tl.constexpr):
    """This program's sample, and the first element of its tile in there, both int64."""
    tile = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    return tl.program_id(0).to(tl.int64), tile * BLOCK


@triton.jit
def offsets(start, plane, channels, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Where a tile's elements [BLOCK], counted in logical order, lie within their sample."""
    at = tl.arange(0, BLOCK)
    if LAST:
        pixel = (start % plane).to(tl.int32) + at
        offset = (pixel % plane).to(tl.int64) * channels + (start // plane + pixel // plane)
    else:
        offset = start + at
    return offset
