"""What the benches of elementwise ops report: times of a copy, ratios to peers, bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from benchmarks.interleave import medians
from benchmarks.replay import device_medians


def report(
    benchmark: Any,
    fused: Callable[[], Tensor],
    peers: Mapping[str, Callable[[], object]],
    *,
    passes: float,
) -> None:
    """Time `fused` among its peers, of which "clone" copies a tensor of its output's size.

    `passes` is how many such tensors `fused` reads and writes. On a GPU all replay from graphs but
    diffusers, which waits for the host and runs as it is.
    """
    result = fused()
    rivals: dict[str, Callable[[], object]] = {"fastdiff": fused, **peers}
    small = result.numel() < 2**20
    if result.is_cuda:
        seconds = device_medians(rivals, eager=("diffusers",), calls=100 if small else 20)
    else:
        seconds = medians(rivals, rounds=50 if small else 11)
    ratios = {name: seconds[name] / seconds["fastdiff"] for name in peers}
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["ratio_to"] = ratios
    benchmark.extra_info["share_of_copy_bandwidth"] = passes / 2 * ratios["clone"]
    print("  " + "  ".join(f"{name} {1e6 * s:.4g} us" for name, s in seconds.items()), end="")
    print(f"  {passes / 2 * ratios['clone']:.0%} of a copy's bandwidth")
    benchmark.pedantic(fused, rounds=5, warmup_rounds=1)
