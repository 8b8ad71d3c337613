"""What float32 means on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(tf32: bool, device: torch.device) -> Iterator[None]:
    """Within it convolutions and matrix products of float32 on a GPU are float32's or TF32's.

    PyTorch's own default is TF32, 10 bits of mantissa, for convolutions alone.
    """
    if device.type != "cuda":
        yield
        return
    # torch's stub leaves conv out.
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
