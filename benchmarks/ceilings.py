"""The two rates that bound every kernel, measured in the run that they are compared with."""

from __future__ import annotations

import functools

import torch

from benchmarks.replay import device_medians


def wake() -> None:
    """Keep the GPU busy for about a second, so that its clocks are up."""
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    for _ in range(600):
        a @ a
    torch.cuda.synchronize()


@functools.cache
def copy_bandwidth() -> float:
    """Bytes a second that a large copy reads and writes, by the driver or by a kernel."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    wake()
    ways = {"copy": lambda: target.copy_(source), "kernel": lambda: torch.neg(source, out=target)}
    return 2 * source.nbytes / min(device_medians(ways, calls=10).values())


@functools.cache
def matrix_rate() -> float:
    """Operations a second of an 8192^3 bfloat16 matrix product of random numbers."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    seconds = device_medians({"product": lambda: a @ b}, calls=5)
    return 2 * 8192**3 / seconds["product"]
