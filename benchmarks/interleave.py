"""Times rivals in turn, so that a drifting machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def medians(
    rivals: Mapping[str, Call], *, rounds: int = 50, warmup: int = 5, in_a_row: int = 1
) -> dict[str, float]:
    """Median seconds of a call of each rival over interleaved rounds, so many calls in each turn.

    Calls that are made in a row where they are used are timed in a row: the first of a turn finds
    the caches full of its rivals' data.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for round_number in range(warmup + rounds):
        for name, call in rivals.items():
            start = time.perf_counter()
            for _ in range(in_a_row):
                call()
            elapsed = (time.perf_counter() - start) / in_a_row
            if round_number >= warmup:
                seconds[name].append(elapsed)
    return {name: statistics.median(times) for name, times in seconds.items()}
