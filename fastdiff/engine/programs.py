"""A model's calls of operators, recorded once and run again without Python between them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine.recording import record
from fastdiff.ops import _library

MOST_PROGRAMS = 16  # of a plan; the oldest goes first


class Programs:
    """The programs of a model by the shapes and dtypes of what it is called with.

    The first call with some shapes runs as it is, in which the model lays out what it keeps; the
    second is recorded, and those that follow are the record's. That is for plain tensors on the
    CPU, while no hook waits in the model and nothing listens to its operators. Copies and pickles
    begin with none.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Callable[..., Tensor] | None] = {}
        self._hooks: list[dict[int, Any]] | None = None

    def run(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """`model(*inputs)`; without gradients."""
        out: Tensor
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if not self._may_run(model, inputs):
            out = model(*inputs)
        elif key not in self._kept:
            self._keep(key, None)
            out = model(*inputs)
        elif (known := self._kept[key]) is None:
            out, program = record(model, inputs)
            self._keep(key, program or model)
        else:
            try:
                out = known(*inputs)
            except RuntimeError:  # which the operator that fails tells better
                out = model(*inputs)
        return out

    def _keep(self, key: Hashable, program: Callable[..., Tensor] | None) -> None:
        self._kept[key] = program
        while len(self._kept) > MOST_PROGRAMS:
            del self._kept[next(iter(self._kept))]

    def _may_run(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return False
        if not all(type(tensor) is Tensor and tensor.is_cpu for tensor in inputs):
            return False
        if self._hooks is None:
            self._hooks = hooks_of(model)
        listened_to = torch._C._len_torch_dispatch_stack() > 0 or _library.reference_asked()
        return _library.native_error() is None and not listened_to and not any(self._hooks)

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        return Programs, ()


def hooks_of(model: nn.Module) -> list[dict[int, Any]]:
    """Where a model and its parts keep what waits for their calls."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [getattr(module, kind) for module in model.modules() for kind in kinds]
