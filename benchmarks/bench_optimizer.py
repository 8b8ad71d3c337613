"""What follows a backward pass on the CPU: the gradient's norm, its clipping and AdamW's step.

python -m pytest benchmarks/bench_optimizer.py -s

For the weights of ddpm-cifar10-32, channels-last as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.interleave import medians
from fastdiff.models import UNet
from fastdiff.ops import _library, total_norm
from fastdiff.training.optimizer import AdamW
from tests.models.unets import CIFAR10

LIMIT = 1.0


def test_norm(benchmark: Any) -> None:
    assert _library.native_kernel("total_norm", "CPU"), "nothing to measure: see doctor"
    gradients = [weight.grad for weight in weights()]
    exact = torch.nn.utils.get_total_norm([g.double() for g in gradients])
    torch.testing.assert_close(total_norm(gradients).double(), exact, rtol=1e-6, atol=0)
    peers = {
        name: lambda foreach=foreach: torch.nn.utils.get_total_norm(gradients, foreach=foreach)
        for name, foreach in (("torch", False), ("foreach", True))
    }
    compare(benchmark, {"fastdiff": lambda: total_norm(gradients), **peers})


@pytest.mark.parametrize("too_long", [False, True], ids=["short", "clipped"])
def test_clipped_step(benchmark: Any, too_long: bool) -> None:
    """From a norm that is known: torch's clips always, as its users do."""
    assert _library.native_kernel("adamw_", "CPU"), "nothing to measure: see doctor"
    norm = torch.tensor(1.25 if too_long else 0.5)

    def ours() -> Callable[[], None]:
        optimizer = AdamW(weights(), 1e-5, 0.0)
        scale = min(1.0, LIMIT / float(norm))
        return lambda: optimizer.step_scaled(scale)

    def theirs(**kind: bool) -> Callable[[], None]:
        own = weights()
        optimizer = torch.optim.AdamW(own, lr=1e-5, weight_decay=0.0, **kind)

        def step() -> None:
            torch.nn.utils.clip_grads_with_norm_(own, LIMIT, norm)
            optimizer.step()

        return step

    steps = {"fastdiff": ours(), "fused": theirs(fused=True), "foreach": theirs(foreach=True)}
    compare(benchmark, steps)


def weights() -> list[nn.Parameter]:
    """With gradients, the same at every call."""
    torch.manual_seed(0)
    unet = UNet(**{k: v for k, v in CIFAR10.items() if not k.startswith("_")})
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = list(unet.parameters())
    for weight in found:
        weight.grad = torch.randn_like(weight)
    return found


def compare(benchmark: Any, calls: dict[str, Callable[[], Tensor | None]]) -> None:
    seconds = medians(calls)
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    print("  " + "  ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items()))
    benchmark.pedantic(calls["fastdiff"], rounds=5, warmup_rounds=1)
