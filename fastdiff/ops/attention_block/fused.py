"""Where the attention block runs as one CUDA kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _library

CHANNELS = (64, 128, 256, 512)
HEAD_DIMS = (32, 64, 128, 256)
MOST_TOKENS = 256


def fused_takes(x: Tensor, heads: int) -> bool:
    """Whether `fastdiff::attention_block_fused` is there and serves such x [N, C, *spatial]."""
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.shape[1] in CHANNELS
        and x.shape[1] // heads in HEAD_DIMS
        and 0 < x.numel()
        and math.prod(x.shape[2:]) <= MOST_TOKENS
        and _library.native_kernel("attention_block_fused", "CUDA")
    )
