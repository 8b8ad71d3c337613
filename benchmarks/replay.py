"""Replays a call as a CUDA graph, so that a small kernel's time is not its launch's."""

from __future__ import annotations

from collections.abc import Callable

import torch

REPLAYS = 20


def replayed(call: Callable[[], object]) -> Callable[[], None]:
    """A function that runs `call` REPLAYS times in one captured graph and waits for its end."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPLAYS):
            call()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay
