"""Where the time of a command went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Stopwatch:
    """Adds up wall seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def timed(
        self, name: str, function: Callable[..., Any], device: torch.device
    ) -> Callable[..., Any]:
        """The same function, timed where calls end before they return: on the CPU."""
        if device.type != "cpu":
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def summary(self, num: int) -> str:
        """One line: images, seconds, images a second, and the parts."""
        total = sum(self.seconds[name] for name in ("start", "sampling", "writing"))
        speed = num / self.seconds["sampling"]
        parts = [f"{name} {self.seconds[name]:.1f}" for name in ("start", "sampling", "writing")]
        if "UNet" in self.seconds:
            parts[1] += f" (UNet {self.seconds['UNet']:.1f})"
        return f"{num} images in {total:.1f} s, {speed:.2f} images/s: {', '.join(parts)} s"
