"""Times rivals on a GPU: by the device's own clock, interleaved, replayed from CUDA graphs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping

import torch

Call = Callable[[], object]


def device_medians(
    rivals: Mapping[str, Call],
    *,
    eager: Collection[str] = (),
    calls: int = 20,
    rounds: int = 15,
) -> dict[str, float]:
    """Median seconds of one call of each rival, over `rounds` interleaved rounds of `calls` calls.

    Those named in `eager` cannot be captured, and pay for their launches as their users do.
    """
    runs = {
        name: repeated(call, calls) if name in eager else captured(call, calls)
        for name, call in rivals.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / calls / 1e3)
    return {name: statistics.median(times) for name, times in seconds.items()}


def captured(call: Call, calls: int) -> Call:
    """A CUDA graph of that many calls, warmed up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    return graph.replay


def repeated(call: Call, calls: int) -> Call:
    """That many calls, warmed up."""

    def run() -> None:
        for _ in range(calls):
            call()

    run()
    return run
