"""`in_huge_pages`: a copy where a processor finds it sooner."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library

__all__ = ["in_huge_pages"]


def in_huge_pages(x: Tensor) -> Tensor:
    """A contiguous copy, on the CPU in memory of 2 MB pages where the system has such.

    For what is large and read once a step, as weights are: it is in no near cache when its turn
    comes, and neither are the tables of its pages; with pages of 4 KB each costs a walk, which on a
    virtual machine is as long as reading the page. What the C++ kernels return lies there as well.

    Args:
        x: of any shape; its copy lies there if it is float32, bfloat16 or float16 of 64 KB or more.
    """
    copy: Tensor = _op(x)
    return copy


def _copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


_op = _library.define("in_huge_pages(Tensor x) -> Tensor", reference=_copied, fake=_copied)
