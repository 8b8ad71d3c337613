"""Times rivals in turn, so that a drifting machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def medians(rivals: Mapping[str, Call], *, rounds: int = 50, warmup: int = 5) -> dict[str, float]:
    """Median seconds of one call of each rival over `rounds` interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for round_number in range(warmup + rounds):
        for name, call in rivals.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if round_number >= warmup:
                seconds[name].append(elapsed)
    return {name: statistics.median(times) for name, times in seconds.items()}
