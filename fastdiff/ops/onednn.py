"""What oneDNN, whose convolutions are PyTorch's on the CPU, can do on this processor."""

from __future__ import annotations

import torch


def onednn_knows(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in it here."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32
