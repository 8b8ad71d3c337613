"""Parameters that lie one behind the other in one tensor, so that joining them is no copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Joined(NamedTuple):
    """A tensor, and the parts of it that the parameters lay in when it was made."""

    whole: Tensor
    parts: Sequence[Tensor]


def lay_out(parameters: Sequence[nn.Parameter], before: Joined | None = None) -> Joined:
    """Move the parameters, along the first axis, into one tensor; `before` if they lie there."""
    if before is not None and _lie_in(before, parameters):
        return before
    whole = torch.cat([p.data for p in parameters])
    parts = whole.split([len(p) for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.data = part
    return Joined(whole, parts)


def join(parameters: Sequence[nn.Parameter], laid_out: Joined) -> Tensor:
    """The parameters along the first axis, without a copy where they still lie as laid out.

    With one where autograd must tell them apart, where `torch.compile` traces, or where they have
    been given other tensors since.
    """
    apart = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    if apart or torch.compiler.is_compiling() or not _lie_in(laid_out, parameters):
        return torch.cat(list(parameters))
    return laid_out.whole


def _lie_in(joined: Joined, parameters: Sequence[Tensor]) -> bool:
    if joined.whole.is_meta or any(p.is_meta for p in parameters):
        return False
    return all(map(Tensor.is_set_to, parameters, joined.parts))
