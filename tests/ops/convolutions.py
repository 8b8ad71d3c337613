"""What the tests of convolutions draw, and what they must refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def weights(
    out_channels: int, channels: int, dtype: torch.dtype = torch.float32, kernel: int = 3
) -> tuple[Tensor, Tensor]:
    shape = (out_channels, channels, kernel, kernel)
    weight = randn(*shape, seed=1) / (kernel * kernel * channels) ** 0.5
    return weight.to(dtype), randn(out_channels, dtype=dtype, seed=2)


def kernel_calls(op: str) -> tuple[int, int]:
    """Of its kernels, and of the one on tiles among them."""
    return _library.native_calls(op, "CPU"), _library.native_calls(f"{op}_direct", "CPU")


@dataclass(frozen=True)
class Case:
    """What a convolution is called with, and by how many threads."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    scale: float
    upsample: bool
    threads: int


@st.composite
def cases(draw: st.DrawFn, dtypes: Sequence[torch.dtype], kernel: int = 3) -> Case:
    dtype, batch = draw(st.sampled_from(dtypes)), draw(st.integers(1, 4))
    channels = draw(st.integers(1, 150) | st.sampled_from([32, 64]))
    out_channels = draw(st.integers(1, 80))
    size = draw(st.integers(1, 12)), draw(st.integers(1, 12) | st.sampled_from([16, 32]))
    upsample = kernel == 3 and draw(st.booleans())
    x = randn(batch, channels, *size, dtype=dtype)
    weight, bias = weights(out_channels, channels, dtype, kernel)
    residual = None
    if draw(st.booleans()):
        sides = [(2 if upsample else 1) * side for side in size]
        residual = randn(batch, out_channels, *sides, dtype=dtype, seed=3)
    return Case(
        x,
        weight,
        bias if draw(st.booleans()) else None,
        residual,
        draw(st.sampled_from([1.0, 0.5**0.5])),
        upsample,
        draw(st.sampled_from([1, 2, 3, 7])),
    )


def bad_inputs(kernel: int, packer: str) -> list[tuple[dict[str, Any], type[Exception], str]]:
    """What is wrong with a call on x [2, 8, 5, 5] and a weight [8, 8, ...], and the sentence."""
    weight = [8, 7, kernel, kernel]
    return [
        ({"x": torch.ones(2, 8, 5)}, ValueError, "x is torch.float32 [2, 8, 5]"),
        ({"weight": torch.ones(weight)}, ValueError, f"weight has shape {weight}"),
        ({"bias": torch.ones(7)}, ValueError, "bias has shape [7]"),
        ({"bias": torch.ones(8).half()}, TypeError, "bias is torch.float16"),
        ({"residual": torch.ones(2, 8, 6, 6)}, ValueError, "give [2, 8, 5, 5]"),
        ({"packed": torch.ones(2, 16, 8, 32)}, ValueError, f"give {packer}(weight)"),
    ]
