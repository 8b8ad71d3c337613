"""Parameters that lie one behind the other in one tensor, so that joining them is no copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def lay_out(parameters: Sequence[nn.Parameter], whole: Tensor | None = None) -> Tensor:
    """Move the parameters, along the first axis, into one tensor: `whole` if they lie there."""
    if whole is not None and _lie_in(whole, parameters):
        return whole
    whole = torch.cat([p.data for p in parameters])
    for p, part in zip(parameters, _parts(whole, parameters), strict=True):
        p.data = part
    return whole


def joined(parameters: Sequence[nn.Parameter], whole: Tensor) -> Tensor:
    """The parameters along the first axis: `whole` itself where they still lie there.

    A copy where autograd must tell them apart, where `torch.compile` traces, or where they have
    been given other tensors since.
    """
    apart = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    if apart or torch.compiler.is_compiling() or not _lie_in(whole, parameters):
        return torch.cat(list(parameters))
    return whole


def _lie_in(whole: Tensor, parameters: Sequence[Tensor]) -> bool:
    if any(p.is_meta or p.device != whole.device or p.dtype != whole.dtype for p in parameters):
        return False
    parts = zip(parameters, _parts(whole, parameters), strict=True)
    return all(p.is_set_to(part) for p, part in parts)


def _parts(whole: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    return whole.split([len(p) for p in parameters])
