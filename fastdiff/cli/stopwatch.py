"""Where the time of a command went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MODEL = "UNet"
KINDS = ("convolution", "normalisation", "attention")


class Stopwatch:
    """Adds up wall seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def time_model(self, model: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        """The same model, it and its parts timed: run part by part, and the device waited for."""
        from torch import cuda, nn

        def now() -> float:
            if device.type == "cuda":
                cuda.synchronize(device)
            return time.perf_counter()

        def watch(name: str, module: nn.Module) -> None:
            began: list[float] = []
            module.register_forward_pre_hook(lambda *_: began.append(now()))
            module.register_forward_hook(lambda *_: self.add(name, now() - began.pop()))

        if not isinstance(model, nn.Module):
            return self._timed(model)
        watch(MODEL, model)
        within: set[nn.Module] = set()
        for module in model.modules():
            if module not in within and (kind := _kind(module)) is not None:
                watch(kind, module)
                within.update(module.modules())
        return model

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(MODEL):
                return function(*args, **kwargs)

        return call

    def summary(self, num: int) -> str:
        """One line: images, seconds, images a second, and the parts."""
        total = sum(self.seconds[name] for name in ("start", "sampling", "writing"))
        speed = num / self.seconds["sampling"]
        parts = [f"{name} {self.seconds[name]:.1f}" for name in ("start", "sampling", "writing")]
        if MODEL in self.seconds:
            parts[1] += f" ({MODEL} {self.seconds[MODEL]:.1f})"
        return f"{num} images in {total:.1f} s, {speed:.2f} images/s: {', '.join(parts)} s"

    def profile(self) -> dict[str, float]:
        """Seconds of sampling by kind of work: those in the model, its rest, and the step."""
        kinds = {kind: self.seconds.get(kind, 0.0) for kind in KINDS}
        model = self.seconds.get(MODEL, 0.0)
        step = self.seconds["sampling"] - model
        return {**kinds, "other": model - sum(kinds.values()), "step and noise": step}


def _kind(module: object) -> str | None:
    """What a part of a UNet does; None for what holds such parts, or is none of them."""
    from torch import nn

    from fastdiff import engine
    from fastdiff.models import blocks

    kinds: dict[tuple[type, ...], str] = {
        (nn.Conv2d, *engine.convolution.KINDS): KINDS[0],
        (blocks.Norm, engine.blocks.Normalisation): KINDS[1],
        (blocks.Attention, engine.blocks.Attention, engine.blocks.PackedAttention): KINDS[2],
    }
    return next((kind for types, kind in kinds.items() if isinstance(module, types)), None)
