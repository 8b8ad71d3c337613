"""Where the attention block is one call of the native library."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .. import _library
from ..onednn import onednn_knows
from ..self_attention import faster_than_sdpa

# (tokens, channels, heads): the batches from which and up to which one kernel was as fast as the
# composite or faster on an H200 (NOTES.md).
MEASURED_FASTER = {
    (16, 256, 1): (64, 256),
    (64, 64, 1): (64, 64),
    (64, 128, 1): (16, 64),
    (64, 256, 1): (64, 256),
    (64, 512, 1): (64, 256),
    (256, 64, 1): (1, 16),
    (256, 128, 1): (1, 16),
    (256, 256, 1): (16, 64),
    (64, 256, 4): (64, 256),
    (64, 384, 6): (64, 64),
    (64, 512, 8): (64, 64),
}


def fused_takes(x: Tensor, heads: int) -> bool:
    """Whether `fastdiff::attention_block_fused` is there, and faster for x [N, C, *spatial]."""
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x.is_cpu:
        of_head = math.prod(x.shape[1:]) // heads
        known = faster_than_sdpa(x, of_head) and products_are_fast(x)
        return known and not _library.reference_asked()
    if not x.is_cuda or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    least, most = MEASURED_FASTER.get((math.prod(x.shape[2:]), x.shape[1], heads), (1, 0))
    return (
        least <= len(x) <= most
        and _library.native_kernel("attention_block_fused", "CUDA")
        and _is_hopper(x.device)
    )


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these on the CPU: not within an op's kernel."""
    key = torch._C.DispatchKey.AutogradCPU
    if not torch.is_grad_enabled() or torch._C._dispatch_tls_is_dispatch_key_excluded(key):
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def products_are_fast(x: Tensor) -> bool:
    """Not of a short dtype that oneDNN refuses: PyTorch's own products are ten times as slow."""
    return not x.is_cpu or x.element_size() > 2 or onednn_knows(x.dtype)


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


_library.adopt("attention_block_fused", _fake)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == 9
