"""What the benches of elementwise ops report: times of a copy, ratios to peers, bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from benchmarks.interleave import medians
from benchmarks.replay import REPLAYS, replayed

GRAPHED = ("fastdiff", "clone")


def report(
    benchmark: Any,
    fused: Callable[[], Tensor],
    peers: Mapping[str, Callable[[], object]],
    *,
    passes: int,
) -> None:
    """Time `fused` among its peers, of which "clone" copies a tensor of its output's size.

    `passes` is how many such tensors `fused` reads and writes. On a GPU it and the copy replay from
    a graph; a peer that waits for the host runs as it is.
    """
    result = fused()
    rivals: dict[str, Callable[[], object]] = {"fastdiff": fused, **peers}
    if result.is_cuda:
        rivals |= {name: replayed(rivals[name]) for name in GRAPHED}
    seconds = medians(rivals, rounds=50 if result.numel() < 2**20 else 11)
    if result.is_cuda:
        seconds |= {name: seconds[name] / REPLAYS for name in GRAPHED}
    ratios = {name: seconds[name] / seconds["fastdiff"] for name in peers}
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["ratio_to"] = ratios
    benchmark.extra_info["share_of_copy_bandwidth"] = passes / 2 * ratios["clone"]
    print("  " + "  ".join(f"{name} {1e6 * s:.0f} us" for name, s in seconds.items()))
    benchmark.pedantic(fused, rounds=5, warmup_rounds=1)
