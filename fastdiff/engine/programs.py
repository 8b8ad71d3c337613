"""Functions that are recorded once and run again without Python between their operators."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine.recording import Function, Program, record
from fastdiff.ops import _library

MOST_PROGRAMS = 16  # of a plan; the oldest goes first


class Recorded:
    """A function as it is at the first call, in which it may lay out what it keeps, and recorded at
    the second; what follows is the record's, if all of it can be recorded.

    The function is handed in at each call, so that nothing here holds it.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._program: Program | None = None

    def run(self, function: Function, *inputs: Tensor) -> list[Tensor]:
        """`function(*inputs)`, with inputs of the same shapes and dtypes each time."""
        if self._program is not None:
            return self._program(*inputs)
        self._calls = calls = self._calls + 1
        if calls != 2:
            return function(*inputs)
        outputs, self._program = record(function, inputs)
        return outputs


class Programs:
    """What a model does with tensors, recorded by their shapes and dtypes.

    That is for plain tensors on the CPU, while no hook waits in the model and nothing listens to
    its operators. Copies and pickles begin with none.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Recorded] = {}
        self._hooks: list[dict[int, Any]] | None = None

    def run(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """`model(*inputs)`; without gradients."""
        if self._may_run(model, inputs):
            try:
                return self._recorded(inputs).run(lambda *inputs: [model(*inputs)], *inputs)[0]
            except RuntimeError:
                pass  # told better by the operator that fails
        out: Tensor = model(*inputs)
        return out

    def _recorded(self, inputs: tuple[Tensor, ...]) -> Recorded:
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        recorded = self._kept.setdefault(key, Recorded())
        while len(self._kept) > MOST_PROGRAMS:
            self._kept.pop(next(iter(self._kept)), None)  # which another thread may have done
        return recorded

    def _may_run(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
        if not undisturbed() or not all(type(x) is Tensor and x.is_cpu for x in inputs):
            return False
        if self._hooks is None:
            self._hooks = hooks_of(model)
        return not any(self._hooks)

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        return Programs, ()


def undisturbed() -> bool:
    """Whether programs can be run, and nobody listens to each operator."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    listened_to = torch._C._len_torch_dispatch_stack() > 0 or _library.reference_asked()
    return _library.native_error() is None and not listened_to


def hooks_of(model: nn.Module) -> list[dict[int, Any]]:
    """Where a model and its parts keep what waits for their calls."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [getattr(module, kind) for module in model.modules() for kind in kinds]
