"""Memory for weights that every step reads once, all of them."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

HUGE = 2**21  # bytes
LINE = 64


class HugePages:
    """Tensors side by side in pages of 2 MB, where the system has such.

    Read once a step, a plan's weights are in no nearer cache when their turn comes, and neither are
    the tables of their pages: with pages of 4 KB each costs a walk, which on a virtual machine is
    as long as reading the page.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Room for these."""
        size = sum(_rounded(tensor) for tensor in tensors)
        self._memory: Tensor | None = None
        if hasattr(mmap, "MADV_HUGEPAGE") and size >= HUGE:
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            pages = mmap.mmap(-1, size + HUGE, flags=private)
            pages.madvise(mmap.MADV_HUGEPAGE)
            memory = torch.frombuffer(pages, dtype=torch.uint8)
            self._memory = memory[-memory.data_ptr() % HUGE :]

    def keep(self, tensor: Tensor) -> Tensor:
        """The contiguous `tensor`, which is one of those, in its place."""
        if self._memory is None:
            return tensor
        place = self._memory[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._memory = self._memory[_rounded(tensor) :]
        return place.copy_(tensor)


def _rounded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // LINE) * LINE
