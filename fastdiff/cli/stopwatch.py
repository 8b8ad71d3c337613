"""Where the time of a command went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
            spent = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def summary(self, num: int) -> str:
        """One line: images, seconds, images a second, and the parts."""
        names = ("start", "sampling", "writing")
        total = sum(self.seconds[name] for name in names)
        parts = ", ".join(f"{name} {self.seconds[name]:.1f}" for name in names)
        speed = num / self.seconds["sampling"]
        return f"{num} images in {total:.1f} s, {speed:.2f} images/s: {parts} s"
