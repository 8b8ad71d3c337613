"""`philox_normal`: standard normals specified to the bit (NOTES.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _library
from . import reference

__all__ = ["checked_counters", "checked_seed", "philox_normal", "readable"]


def philox_normal(
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    sample_index: Tensor,
    draw: int | Tensor = 0,
    stream: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals with the same bits anywhere: Philox4x32-10 (Salmon et al. 2011), Box-Muller.

    A sample's noise depends on seed, its own index, draw and stream alone: a batch of N equals N
    batches of 1, and one of other shape but the same number of elements holds the same values.

    Args:
        shape: [N, ...], at most 2**34 elements a sample, counted in logical (row-major) order.
        seed: 0..2**64-1, or its 64 bits as int64 [] on the result's device, which a captured graph
            reads anew at every replay.
        sample_index: [N] int64 in 0..2**48-1.
        draw: which normals of that sample, in 0..2**32-1; one for all, or [N] int64.
        stream: 0..2**16-1, keeps uses of one seed apart.
        device: where; sample_index's device if None.
        dtype: float32 values rounded to it (float64 holds the float32 values).

    Returns:
        [N, ...], contiguous, |value| < 6.8.

    Raises:
        ValueError: a shape or a number out of range. An index or draw that lies on an accelerator
            is not read back: its low 48 or 32 bits count.
        TypeError: an index, draw or seed tensor that is not int64, or a dtype that is not floating.
    """
    shape = [int(size) for size in shape]
    if not shape or min(shape) < 0:
        raise ValueError(f"shape must be [N, ...] of sizes from 0 up, got {shape}.")
    if torch.Size(shape[1:]).numel() > 2**34:
        raise ValueError(f"a sample holds at most 2**34 elements, shape {shape} has more.")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}.")
    draw = checked_counters(shape[0], sample_index, draw, stream)
    sample_index = sample_index.to(device)
    draw = draw.to(sample_index.device)
    return _op(shape, checked_seed(seed, draw.device), sample_index, draw, stream, dtype)


def checked_counters(N: int, sample_index: Tensor, draw: int | Tensor, stream: int) -> Tensor:
    """Draw as [N] int64; ValueError or TypeError unless all are as philox_normal takes them."""
    if isinstance(draw, int):
        _check_range("draw", draw, draw, 32)
        draw = torch.full_like(sample_index, draw)
    for name, tensor, bits in (("sample_index", sample_index, 48), ("draw", draw, 32)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}.")
        if list(tensor.shape) != [N]:
            raise ValueError(
                f"{name} must be [{N}], one for each sample; got {list(tensor.shape)}."
            )
        if N and readable(tensor):
            _check_range(name, int(tensor.min()), int(tensor.max()), bits)
    _check_range("stream", stream, stream, 16)
    return draw


def checked_seed(seed: int | Tensor, device: torch.device) -> Tensor:
    """A seed 0..2**64-1, or its 64 bits as an int64 tensor [], in an int64 tensor [] on device."""
    if isinstance(seed, int):
        _check_range("seed", seed, seed, 64)
        signed = seed - 2**64 if seed >= 2**63 else seed
        return torch.full((), signed, dtype=torch.int64, device=device)
    if seed.dtype != torch.int64 or seed.ndim:
        raise TypeError(f"seed must be an int or int64 [], got {seed.dtype} {list(seed.shape)}.")
    if seed.device != device:
        raise ValueError(f"seed must lie on {device}, with the other tensors; got {seed.device}.")
    return seed


def readable(tensor: Tensor) -> bool:
    """Whether a check may look at the values: on the CPU, while nothing traces or records calls."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def _check_range(name: str, low: int, high: int, bits: int) -> None:
    if low < 0 or high >= 2**bits:
        got = low if low == high else f"{low}..{high}"
        raise ValueError(f"{name} must lie in 0..2**{bits}-1, got {got}.")


def _fake(
    shape: Sequence[int],
    seed: Tensor,
    sample_index: Tensor,
    draw: Tensor,
    stream: int,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=sample_index.device)


_op = _library.define(
    "philox_normal(SymInt[] shape, Tensor seed, Tensor sample_index, Tensor draw, int stream, "
    "ScalarType dtype) -> Tensor",
    reference=reference.philox_normal,
    fake=_fake,
)
