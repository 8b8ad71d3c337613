"""What kinds of work the time of a run goes to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from fastdiff.engine.recording import Listener

KINDS = ("convolution", "normalisation", "attention", "other", "step and noise")
# By a part of an operator's name, the first that it has.
KIND_BY_NAME = {
    "denoise_step": "step and noise",
    "philox_normal": "step and noise",
    "conv": "convolution",
    "norm": "normalisation",
    "attention": "attention",
    "softmax": "attention",
}


class Operators(Listener):
    """Adds up the seconds of each operator called within it, by kind; a GPU is waited for.

    It listens, so what is called runs operator by operator, and no Python between them counts: a
    run that nobody listens to has little of that (a recorded program, or a CUDA graph).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        began = self._now()
        out = func(*args, **(kwargs or {}))
        self.seconds[kind(func.name())] += self._now() - began
        return out

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def kind(operator: str) -> str:
    """One of KINDS."""
    return next((kind for name, kind in KIND_BY_NAME.items() if name in operator), "other")
